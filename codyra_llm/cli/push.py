"""Publishes a finished model with its card on the Hugging Face hub: `codyra push runs/x/model USER/NAME`.

    hf auth login                                  # or HF_TOKEN=...
    codyra push runs/x/model USER/NAME --private

The card states the base model, its licence and languages as far as the base model's own card does; read it before.
"""

import sys

from codyra_llm.command import Parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="folder of a saved model")
    parser.add_argument("repository", metavar="USER/NAME", help="where it goes; made where it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    return parser


def command() -> None:
    """Reads the command line, publishes the model and prints the URL of the commit."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.models.hub import push  # after the command line, so that mistakes are reported at once

    print(push(options.model, options.repository, options.private, options.revision))
