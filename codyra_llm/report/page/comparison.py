"""The page of a comparison: forgetting against learning, the table, paired differences, and each task separately."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from codyra_llm.config.grid import grid_runs
from codyra_llm.errors import UserError
from codyra_llm.files import write_text
from codyra_llm.report import plots
from codyra_llm.report.comparison import (
    SHOWN,
    Comparison,
    forgetting_figure,
    read_comparison,
    shown_cell,
    shown_estimate,
)
from codyra_llm.report.page.render import render
from codyra_llm.report.page.sentences import Sentence
from codyra_llm.report.page.tables import DataTable
from codyra_llm.results.comparison import OF_ROWS
from codyra_llm.results.measures import MEASURES
from codyra_llm.results.schema import RunResults, read_results

Points = dict[str, dict[str, list[tuple[float, float]]]]  # task -> contestant -> (NLL learned, NLL forgotten) by run
PICTURES = {
    "forgetting": "Forgetting against learning: further right is more learned, lower is less forgotten",
    "forgetting_by_task": "The same for each task, the mean over runs; the last task of an order cannot be forgotten",
}


def report_comparison(folder: Path) -> Path:
    """Writes the pictures and `report.html` of the comparison in a folder into this folder; returns the page's path.

    Raises:
        UserError: the folder contains no comparison, or a damaged one.
        OSError: it cannot be written.
    """
    found = read_comparison(folder)
    runs = _finished_runs(found, folder)
    figures = {"forgetting": plots.draw(lambda: forgetting_figure(found.contestants, found.grid.line))}
    if points := _points(runs):
        figures["forgetting_by_task"] = plots.draw(lambda: by_task_figure(points, found.grid.line))
    pictures = {name: plots.write_picture(figure, folder, name, PICTURES[name]) for name, figure in figures.items()}
    path = folder / "report.html"
    write_text(path, _page(found, folder, pictures, [run for of in runs.values() for run, _ in of]))
    return path


def _finished_runs(found: Comparison, folder: Path) -> dict[str, list[tuple[str, RunResults]]]:
    """Returns {contestant: (folder, results) of each of its runs that has finished in the comparison's folder}."""
    runs: dict[str, list[tuple[str, RunResults]]] = {}
    for run in grid_runs(found.grid):
        try:
            results = read_results(folder / run.folder)
        except UserError:  # the run has failed, or was moved; the table shows how many have finished
            continue
        if results.finished:
            runs.setdefault(run.point.name, []).append((run.folder, results))
    return runs


def _points(runs: Mapping[str, Sequence[tuple[str, RunResults]]]) -> Points:
    points: Points = {}
    for contestant, of_contestant in runs.items():
        for _, results in of_contestant:
            for number, task in enumerate(results.tasks[:-1]):
                own, last = results.answer_nll[number + 1][number], results.answer_nll[-1][number]
                if own is not None and last is not None:
                    points.setdefault(task, {}).setdefault(contestant, []).append((own, last - own))
    return points


def by_task_figure(points: Points, line: str) -> Any:
    """Plots forgetting against learning in a panel for each task, with a mark for each contestant."""
    contestants = list(dict.fromkeys(name for of_task in points.values() for name in of_task))
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure, panels = plots.make_panels(rows, columns, (2.0 + 2.3 * columns, 0.8 + 2.0 * rows))
    for axes, (task, of_task) in zip(panels, points.items(), strict=False):
        for name, runs in of_task.items():
            number = contestants.index(name)
            color = plots.INK if name == line else plots.COLORS[number % len(plots.COLORS)]
            marker = plots.MARKERS[number % len(plots.MARKERS)]
            mean = [sum(values) / len(values) for values in zip(*runs, strict=True)]
            axes.plot(*mean, marker=marker, color=color, linestyle="none", label=plots.short(name))
        axes.set_title(plots.short(task), fontsize=9)
        axes.invert_xaxis()
        axes.tick_params(labelsize=7)
    for axes in panels[len(points) :]:
        axes.set_axis_off()
    figure.supxlabel("NLL right after learning", fontsize=8)
    figure.supylabel("forgotten", fontsize=8)
    by_label = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(by_label.values(), by_label.keys(), loc="outside right upper", fontsize=7)
    return figure


def _page(found: Comparison, folder: Path, pictures: Mapping[str, str], runs: Sequence[str]) -> str:
    grid = found.grid
    return render(
        "comparison.html",
        f"{folder.resolve().name}: {len(found.contestants)} contestants",
        pictures,
        captions=PICTURES,
        line=grid.line,
        seeds=grid.seeds,
        orders=grid.orders,
        sentences=sentences_of(found),
        of_measures=_of_measures(found, SHOWN),
        of_all=_of_measures(found, [name for name in MEASURES if name not in SHOWN]),
        of_differences=_of_differences(found),
        of_predictors=DataTable(
            "Rank correlation of a run's measures with its NLL forgotten (Spearman, 95 % intervals over runs)",
            ("measure", "correlation"),
            [[MEASURES.get(name, name), shown_estimate(each)] for name, each in found.predictors.items()],
        ),
        of_settings=DataTable(
            "What a contestant's settings are",
            ("contestant", "settings"),
            [[each.name, ", ".join(f"{key}: {value}" for key, value in each.settings.items())]
             for each in found.contestants],
        ),
        failed=[problem for each in found.contestants for problem in each.failed],
        runs=[run for run in runs if (folder / run / "report.html").is_file()],
        grid=yaml.safe_dump({**_plain(grid), "tuned": found.tuned}, sort_keys=False, allow_unicode=True),
    )  # fmt: skip


def sentences_of(found: Comparison) -> list[Sentence]:
    """Returns a sentence for each contestant that compares its forgetting with that of the line."""
    sentences = []
    for each in found.contestants:
        if each.variant == found.grid.line:
            continue
        if not each.excess:
            text = "the line does not reach what it learned, so that its forgetting has nothing to be held against."
            sentences.append(Sentence(each.name, text, "open"))
            continue
        said, kind = "forgets as much as the line at the same learning, as far as runs and rows can tell", "unclear"
        if each.excess.is_decided:
            better = each.excess.value < 0
            said = f"forgets {'less' if better else 'more'} than the line at the same learning"
            kind = "better" if better else "worse"
        sentences.append(Sentence(each.name, f"{said}: {shown_estimate(each.excess)} nats.", kind))
    return sentences


def _of_measures(found: Comparison, names: Sequence[str]) -> DataTable:
    known = [name for name in names if any(each.mean.get(name) is not None for each in found.contestants)]
    rows = [
        [each.name, str(each.runs), *(shown_cell(each, name).replace("+-", "±") for name in known)]
        for each in found.contestants
    ]
    name = "Mean ± standard deviation over runs" + ("" if tuple(names) == SHOWN else ": further measures")
    return DataTable(name, ["contestant", "runs", *(MEASURES[each] for each in known)], rows)


def _of_differences(found: Comparison) -> DataTable:
    heads = ["contestant", *(MEASURES[name] for name in OF_ROWS), f"above the line of {found.grid.line}"]
    rows = [
        [each.name, *(shown_estimate(each.difference.get(name)) for name in OF_ROWS), shown_estimate(each.excess)]
        for each in found.contestants
    ]
    name = f"Difference from {found.grid.line}, paired by run and by row, with 95 % intervals"
    return DataTable(name, heads, rows)


def _plain(grid: Any) -> dict[str, Any]:
    content = dataclasses.asdict(grid)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}
