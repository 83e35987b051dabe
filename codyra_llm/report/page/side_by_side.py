"""A page with several runs side by side: results, results by task, and the settings that differ."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codyra_llm.files import write_text
from codyra_llm.report import plots
from codyra_llm.report.page import sentences
from codyra_llm.report.page.render import NOTHING, interval, number, render
from codyra_llm.report.page.tables import DataTable
from codyra_llm.report.pictures import Run
from codyra_llm.results import intervals
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.schema import read_results
from codyra_llm.results.summary import general_change
from codyra_llm.text import shown

NOT_SETTINGS = ("output_dir",)


def report_several(folders: Sequence[Path], output: Path) -> Path:
    """Writes a page of several runs to a file; returns its path. Differences are relative to the first run.

    Raises:
        UserError: a folder contains no run, or a damaged one.
        OSError: the file cannot be written.
    """
    runs = dict(zip(_names(folders), (Run(read_results(folder), folder) for folder in folders), strict=True))
    pictures = {}
    for place, (name, run) in enumerate(runs.items()):
        suites, _ = general_change(run.results.general)
        figure = plots.draw(partial(plots.summary_figure, run.summary, suites))
        pictures[name] = plots.inline_svg(plots.as_svg(figure), f"run{place}", f"{name}: base, just learned, now")
    page = render(
        "side_by_side.html",
        f"{len(runs)} runs side by side",
        pictures,
        runs={name: sentences.of_run(run.results, run.summary) for name, run in runs.items()},
        first=next(iter(runs)),
        of_runs=_of_runs(runs),
        of_tasks=_of_tasks(runs),
        of_differences=_of_differences(runs),
        of_settings=_of_settings(runs),
    )
    write_text(output, page)
    return output


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the folders' names, preceded by as many parent names as make them distinct."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{place}: {folder}" for place, folder in enumerate(folders, 1)]  # a folder was given twice


def _of_runs(runs: Mapping[str, Run]) -> DataTable:
    rows = []
    for name, run in runs.items():
        results, summary = run.results, run.summary
        _, change = general_change(results.general)
        scores = (summary.base, summary.learned, summary.end, summary.lost)
        measured = [f"{summary.now.number} of {len(results.tasks)}", *map(interval, scores), interval(change, True)]
        cost = (number(results.mean_rank), number(results.seconds, 0))
        rows.append([name, str(results.config.get("method", "")), *measured, *cost])
    heads = ("run", "method", "tasks learned", "base", "just learned", "now", "lost since", "general ability",
             "kept rank", "seconds")  # fmt: skip
    return DataTable("Means over tasks, with 95 % intervals over rows", heads, rows)


def _of_tasks(runs: Mapping[str, Run]) -> DataTable:
    rows = []
    for task in _tasks(runs):
        found = [next((each for each in run.summary.tasks if each.task == task), None) for run in runs.values()]
        cells = [[interval(each.now), interval(each.lost)] if each else [NOTHING, NOTHING] for each in found]
        rows.append([task, *(cell for pair in cells for cell in pair)])
    heads = ["task", *(head for name in runs for head in (f"{name}: now", f"{name}: lost since"))]
    return DataTable("Each task at the end, with 95 % intervals", heads, rows)


def _of_differences(runs: Mapping[str, Run]) -> DataTable:
    (first, of_first), *others = runs.items()
    rows = [[task, *(interval(_difference(of_first, run, task), True) for _, run in others)] for task in _tasks(runs)]
    measured = [row for row in rows if any(cell != NOTHING for cell in row[1:])]
    heads = ["task", *(name for name, _ in others)]
    return DataTable(f"Score at the end minus that of {first}, paired by row", heads, measured)


def _difference(first: Run, other: Run, task: str) -> Estimate | None:
    """Returns the difference of the scores at the end, paired by row; None if test rows differ or are not stored."""
    if task not in first.results.tasks or task not in other.results.tasks:
        return None
    found = []
    for run in (first, other):
        place = run.results.tasks.index(task)
        total = run.results.matrix[run.summary.now.number][place]
        variant = run.results.config["evaluate"]["scorer_variant"]
        rows = None if total is None else run.scores.rows.scores(run.summary.now, task, variant, total)
        found.append((run.results.data.tasks[place].sha256.get("test"), variant, rows))
    (data, variant, rows), (other_data, other_variant, other_rows) = found
    if rows is None or other_rows is None or (data, variant, len(rows)) != (other_data, other_variant, len(other_rows)):
        return None
    return intervals.of_change(rows, other_rows)


def _of_settings(runs: Mapping[str, Run]) -> DataTable:
    flat = [dict(_flat(run.results.config)) for run in runs.values()]
    names = [name for name in dict.fromkeys(key for each in flat for key in each) if name not in NOT_SETTINGS]
    rows = [[name, *(shown(each.get(name)) for each in flat)] for name in names]
    return DataTable("Settings that differ", ["setting", *runs], [row for row in rows if len(set(row[1:])) > 1])


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _tasks(runs: Mapping[str, Run]) -> list[str]:
    return list(dict.fromkeys(task for run in runs.values() for task in run.results.tasks))
