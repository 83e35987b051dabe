"""Makes the page of a run or of a comparison again, or one that shows several runs side by side.

    codyra report runs/x                                   # writes runs/x/report.html, and its pictures
    codyra report runs/compare                             # of a comparison: its page
    codyra report runs/x runs/y --output side_by_side.html
    codyra report --watch runs/x                           # again at each evaluation, until the run is finished

A run and a comparison write their page themselves when they end. A page is one file without any other: it can be
mailed, and opens in every browser.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of a comparison")
    parser.add_argument("--watch", action="store_true", help="make the page again when results.json changes")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="of several runs (default: report.html, here)")
    return parser


def command() -> None:
    """Reads the command line and writes the page.

    Raises:
        UserError: options are incompatible, or a folder contains neither a run nor a comparison.
    """
    options = make_parser().parse_args(sys.argv[1:])
    several = len(options.folders) > 1
    if several and options.watch:
        raise UserError("command line: --watch takes one run; give its folder alone")
    if options.output and not several:
        raise UserError("command line: --output is for several runs; the page of one goes into its folder")
    from codyra_llm.files import expand  # after the command line, so that mistakes are reported at once
    from codyra_llm.workflows.report import make_report, watch

    folders = [expand(folder) for folder in options.folders]
    if options.watch:
        watch(folders[0])
    else:
        print(make_report(folders, expand(options.output or "report.html")))
