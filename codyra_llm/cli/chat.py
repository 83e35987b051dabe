"""Talks to a model, for a first look: `codyra chat runs/x/model`.

    codyra chat runs/x/model
    echo "What is the capital of France?" | codyra chat runs/x/model --max_new_tokens 20

Each line that is typed is a turn; Ctrl-D ends the conversation, /new begins another. Prompts are made as in the run
that saved the model: in its chat template, where the conversation so far is read again, or as they are, each by itself.
"""

import sys

from codyra_llm.command import Parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="hub id, HF folder, .gguf file")
    parser.add_argument("--system", metavar="TEXT", help="a system message that opens each conversation")
    parser.add_argument(
        "--chat_template", metavar="VALUE", default="run", help="as of `codyra judge` (default: as in the run)"
    )
    parser.add_argument("--max_new_tokens", type=int, metavar="N", default=256, help="of an answer (default: 256)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return parser


def command() -> None:
    """Reads the command line and answers each typed line, until the input ends."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.workflows.chat import chat  # after the command line, so that mistakes are reported at once

    chat(options.model, options.chat_template, options.system, options.max_new_tokens, options.dtype)
