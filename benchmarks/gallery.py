"""Writes docs/gallery.md: the results of finished runs and comparisons, in sentences and pictures.

python -m benchmarks.gallery runs/quickstart runs/compare_nano
"""

import argparse
import shlex
import shutil
from pathlib import Path

from codyra_llm.config.grid import grid_runs
from codyra_llm.files import write_text
from codyra_llm.report.comparison import read_comparison
from codyra_llm.report.page import comparison, sentences
from codyra_llm.report.pictures import PICTURES, Run, write_pictures
from codyra_llm.results.schema import read_results
from codyra_llm.text import scrub

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# Gallery

What the [pages](report.md) of real runs show, made by

    {command}
"""


def main() -> None:
    """Reads the command line and writes the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders of finished runs or comparisons")
    folders = parser.parse_args().folders
    parts = [HEAD.format(command=shlex.join(["python", "-m", "benchmarks.gallery", *map(str, folders)]))]
    for folder in folders:
        part = comparison_part if (folder / "comparison.json").is_file() else run_part
        parts.append(f"## {folder.name}\n\n{part(folder)}")
    write_text(DOCS / "gallery.md", "\n".join(parts))


def run_part(folder: Path) -> str:
    """Returns the Markdown of a run: its command, the sentences of its page, and its pictures."""
    results = read_results(folder)
    run = Run(results, folder)
    write_pictures(run)
    tasks = run.summary.tasks
    said = [*sentences.of_run(results, run.summary), *(sentences.of_task(task, task is tasks[-1]) for task in tasks)]
    pictures = {picture.name: picture.what for picture in PICTURES if picture.needs(run)}
    return f"    {scrub(shlex.join(results.command))}\n\n{listed(said)}\n\n{shown(folder, pictures)}"


def comparison_part(folder: Path) -> str:
    """Returns the Markdown of a comparison: its command, the sentences of its page, and its pictures."""
    comparison.report_comparison(folder)
    found = read_comparison(folder)
    first = read_results(folder / next(grid_runs(found.grid)).folder)
    line = f"The line to beat is {found.grid.line}, whose settings of strength are the points of its curve."
    pictures = {name: what for name, what in comparison.PICTURES.items() if (folder / f"{name}.png").is_file()}
    said = listed(comparison.sentences_of(found))
    return f"    {scrub(shlex.join(first.command))}\n\n{line}\n\n{said}\n\n{shown(folder, pictures)}"


def listed(said: list[sentences.Sentence]) -> str:
    """Returns sentences as a Markdown list."""
    return "\n".join(f"- **{each.about}**: {each.text}" for each in said)


def shown(folder: Path, pictures: dict[str, str]) -> str:
    """Copies pictures of a folder next to the page; returns their Markdown with captions."""
    (DOCS / "gallery").mkdir(exist_ok=True)
    lines = []
    for name, what in pictures.items():
        target = Path("gallery") / f"{folder.name}_{name}.png"
        shutil.copyfile(folder / f"{name}.png", DOCS / target)
        lines.append(f"![{what[0].upper()}{what[1:]}]({target})\n\n*{what[0].upper()}{what[1:]}.*\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
