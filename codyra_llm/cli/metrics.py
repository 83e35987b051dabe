"""Prints every metric of a run's matrix in every scoring variant, each with its definition and which sign is better.

codyra metrics runs/x
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    return parser


def command() -> None:
    """Reads the command line and prints the table."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.files import expand  # after the command line, so that mistakes are reported at once
    from codyra_llm.report.tables import all_metrics_table
    from codyra_llm.results.schema import read_results

    print(all_metrics_table(read_results(expand(options.run))))
