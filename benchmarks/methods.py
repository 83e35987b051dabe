"""What a comparison on nano has measured of each method, as the table of docs/methods.md.

    codyra compare --config compare_nano --seeds 0 --methods ... --output_dir runs/methods
    python -m benchmarks.methods runs/methods --into docs/methods.md

Values that train at once, bytes that a method keeps of eight tasks beside the weights, and the likelihood of the true
answers in nats per token: right after each task, its rise until the end, and at the end.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser, main
from codyra_llm.files import put_between_marks
from codyra_llm.report.comparison import read_comparison, shown_cell
from codyra_llm.selfcheck.report import table

COLUMNS = {
    "trainable": "values that train",
    "bytes_kept": "bytes kept",
    "nll_learned": "NLL learned",
    "nll_forgotten": "NLL forgotten",
    "nll_final": "NLL at the end",
    "general": "general ability, change in %",
}


def markdown(folder: Path) -> str:
    """A row for each contestant that has finished, whatever its variant."""
    found = read_comparison(folder)
    rows: list[dict[str, object]] = [
        {"": each.name, **{head: shown_cell(each, name) for name, head in COLUMNS.items()}}
        for each in found.contestants
        if each.runs
    ]
    seeds = ", ".join(map(str, found.grid.seeds))
    return f"Seeds {seeds}; `codyra compare --methods {' '.join(found.grid.methods)}`:\n\n{table(rows)}"


def command() -> None:
    """Prints the table, and puts it into a page."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument("--into", type=Path, help="the page between whose marks it is put")
    options = parser.parse_args(sys.argv[1:])
    text = markdown(options.folder)
    print(text)
    if options.into:
        put_between_marks(options.into, "nano", text)


if __name__ == "__main__":
    main(command)
