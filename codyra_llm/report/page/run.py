"""The page of one run, finished or not."""

import shlex
from pathlib import Path

import yaml

from codyra_llm.files import write_text
from codyra_llm.report.page import matrix, sentences, tables
from codyra_llm.report.page.answers import Answers
from codyra_llm.report.page.render import render
from codyra_llm.report.pictures import Run, write_pictures
from codyra_llm.results.schema import RunResults, read_results
from codyra_llm.results.summary import general_change
from codyra_llm.text import scrub

NAME = "report.html"


def write_report(results: RunResults, folder: Path, refresh: bool = False) -> None:
    """Writes a run's pictures, and `report.html` with them, into its folder.

    Args:
        results: of the run.
        folder: of the run.
        refresh: whether the page reloads itself every few seconds, for a run that has not finished.

    Raises:
        UserError: files in the folder are damaged.
        OSError: it cannot be written.
    """
    run = Run(results, folder)
    write_text(folder / NAME, run_page(run, write_pictures(run), refresh))


def report(folder: Path, refresh: bool = False) -> Path:
    """Rewrites the page of the run in a folder; returns its path.

    Raises:
        UserError: the folder contains no run, or a damaged one.
        OSError: it cannot be written.
    """
    results = read_results(folder)
    write_report(results, folder, refresh and not results.finished)
    return folder / NAME


def run_page(run: Run, pictures: dict[str, str], refresh: bool = False) -> str:
    """Returns the HTML of the page; pictures are SVG elements by name."""
    results, answers = run.results, Answers(run)
    tasks = f"{len(results.tasks)} task{'s' * (len(results.tasks) != 1)}"
    last = run.summary.now.number
    return render(
        "run.html",
        f"{run.folder.resolve().name}: {Path(results.model.name).name}, {tasks}",
        pictures,
        refresh,
        results=results,
        method=results.config.get("method", ""),
        summary=run.summary,
        whole=sentences.of_run(results, run.summary),
        tasks=[sentences.of_task(task, place == last) for place, task in enumerate(run.summary.tasks, 1)],
        matrices=matrix.tables(run),
        changed=answers.changed(),
        of_tasks=tables.of_tasks(run.summary),
        of_leading=tables.of_leading(results),
        of_suites=tables.of_suites(general_change(results.general)[0]),
        of_further=tables.of_further(results),
        of_ranks=tables.of_ranks(results, run.summary),
        of_wrong=tables.of_wrong(answers.wrong_forms()),
        of_phases=tables.of_phases(results.phases, results.data.facts.unit),
        of_data=tables.of_data(results),
        of_versions=tables.DataTable("Versions", ("package", "version"), list(results.versions.items())),
        command=scrub(shlex.join(results.command)),
        config=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True),
    )
