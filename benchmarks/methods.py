"""Makes the tables of the documentation from a finished comparison.

    codyra compare --config compare_nano --sweep learning_rate --methods ... --output_dir runs/methods
    python -m benchmarks.methods runs/methods --table cost --into docs/methods.md
    python -m benchmarks.methods runs/methods --table results --mark nano --into docs/results.md

`cost` shows the trainable parameters, the bytes that a method keeps and the NLL of the true answers. `results` shows
learning and forgetting, the learning rate that a sweep has chosen, and forgetting at equal learning with its interval.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser, main
from codyra_llm.files import put_between_marks
from codyra_llm.report.comparison import Comparison, read_comparison, shown_cell, shown_estimate
from codyra_llm.results.comparison import Contestant
from codyra_llm.results.measures import MEASURES
from codyra_llm.selfcheck.report import table

TABLES = {
    "cost": ("trainable", "bytes_kept", "nll_learned", "nll_forgotten", "nll_final", "general"),
    "results": ("nll_learned", "nll_forgotten", "nll_final", "general", "text_bits", "rank"),
}


def markdown(found: Comparison, kind: str) -> str:
    """Returns a line with the seeds and orders, and a table with a row for each contestant that has runs."""
    rows = [_row(found, each, kind) for each in found.contestants if each.runs]
    seeds, orders = (", ".join(map(str, values)) for values in (found.grid.seeds, found.grid.orders))
    return f"Seeds {seeds}; {orders}; mean +- standard deviation.\n\n{table(rows)}"


def _row(found: Comparison, each: Contestant, kind: str) -> dict[str, object]:
    row: dict[str, object] = {"": each.name}
    tuned = found.tuned.get(each.variant, {})
    if kind == "results" and found.tuned:
        row["learning rate"] = f"{next(iter(tuned.values())):g}" if tuned else ""
    row |= {MEASURES[name]: shown_cell(each, name) for name in TABLES[kind]}
    if kind == "results":
        row[f"above the line of {found.grid.line}"] = shown_estimate(each.excess)
    return row


def command() -> None:
    """Prints the table and, with --into, writes it into a page."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument("--table", choices=TABLES, default="cost", help="which columns")
    parser.add_argument("--into", type=Path, help="the page between whose marks it is put")
    parser.add_argument("--mark", default="nano", help="name of the marks (default: nano)")
    options = parser.parse_args(sys.argv[1:])
    text = markdown(read_comparison(options.folder), options.table)
    print(text)
    if options.into:
        put_between_marks(options.into, options.mark, text)


if __name__ == "__main__":
    main(command)
