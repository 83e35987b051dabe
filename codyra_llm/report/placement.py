"""Comparison of branch placements, by task: runs whose variants have branches in different projections."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codyra_llm.errors import UserError
from codyra_llm.report import plots
from codyra_llm.report.comparison import finished_runs
from codyra_llm.results.measures import row_losses
from codyra_llm.results.schema import read_results
from codyra_llm.text import align

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """The results of runs with branches in the same projections; means over orders and seeds.

    Attributes:
        name: of the variant.
        rank: initial rank of a branch.
        trainable: number of trainable parameters.
        tasks: names of the tasks.
        learned: [tasks], NLL right after each task.
        forgotten: [tasks], increase of this NLL until the end.
    """

    name: str
    rank: int
    trainable: int
    tasks: list[str]
    learned: Array
    forgotten: Array

    @property
    def final(self) -> Array:
        """[tasks], the NLL at the end."""
        return self.learned + self.forgotten


def read_placements(folder: Path) -> list[Placement]:
    """Returns every variant and rank of a comparison, in its order; points that differ in other settings are left out.

    Raises:
        UserError: it is no comparison, none of its runs has finished in this folder, or they learned different tasks.
    """
    found: dict[tuple[str, int], list[Placement]] = {}
    for each, run in finished_runs([folder]):
        settings, strength = each.point.settings, each.point.strength
        if settings.get("merge.scale", 1) != 1 or strength not in (None, settings.get("adapter.rank")):
            continue
        results = read_results(run)
        losses = row_losses(results, run)
        learned = np.array([task.learned.mean() for task in losses])
        forgotten = np.array([task.last.mean() for task in losses]) - learned
        rank = int(results.config["adapter"]["rank"])
        placement = Placement(each.point.variant, rank, results.trainable_parameters, results.tasks, learned, forgotten)
        found.setdefault((placement.name, rank), []).append(placement)
    if not found:
        raise UserError(
            f"{folder}: its runs differ in other things than placements and ranks; give a comparison of these"
        )
    taught = {tuple(sorted(placement.tasks)) for runs in found.values() for placement in runs}
    if len(taught) > 1:
        several = " and ".join(", ".join(tasks) for tasks in sorted(taught)[:2])
        raise UserError(f"{folder}: its runs learned {several}; placements are compared on the same tasks")
    tasks = next(iter(found.values()))[0].tasks
    return [_mean(runs, tasks) for runs in found.values()]


def best_of_each(placements: Sequence[Placement]) -> list[Placement]:
    """Returns, for each placement, the rank with the lowest mean NLL at the end."""
    of_names: dict[str, list[Placement]] = {}
    for each in placements:
        of_names.setdefault(each.name, []).append(each)
    return [min(ranks, key=lambda each: float(each.final.mean())) for ranks in of_names.values()]


def placement_table(placements: Sequence[Placement]) -> str:
    """Returns means over tasks, and the number of tasks for which each rank of a placement is its best at the end."""
    rows = [
        [
            "placement",
            "rank",
            "values that train",
            "NLL learned",
            "NLL forgotten",
            "NLL at the end",
            "best of its ranks",
        ]
    ]
    for each in placements:
        siblings = np.stack([other.final for other in placements if other.name == each.name])
        wins = int((each.final <= siblings.min(axis=0)).sum())
        means = [f"{values.mean():.3f}" for values in (each.learned, each.forgotten, each.final)]
        rows.append([each.name, str(each.rank), str(each.trainable), *means, f"for {wins} of {len(each.tasks)} tasks"])
    return align(rows)


def plot_placements(placements: Sequence[Placement], output: Path) -> list[Path]:
    """Writes OUTPUT-learned.png and OUTPUT-forgotten.png: placements at their best rank (rows) by task (columns)."""
    best, paths = best_of_each(placements), []
    rows = [f"{each.name}, rank {each.rank}" for each in best]
    for part, title in (("learned", "NLL right after a task"), ("forgotten", "Its rise until the end")):
        values = np.stack([getattr(each, part) for each in best])

        def of(values: Array = values, title: str = title) -> Any:
            low, high = float(values.min()), float(values.max())
            figure, axes = plots.heatmap(values, rows, best[0].tasks, low, high, "nats a token", "{:.2f}")
            axes.set_title(title)
            return figure

        paths.append(output.with_name(f"{output.name}-{part}.png"))
        plots.save_figure(plots.draw(of), paths[-1])
    return paths


def _mean(runs: Sequence[Placement], tasks: list[str]) -> Placement:
    """Returns the mean of runs with the same branches and different task orders, in the order of `tasks`."""
    first = runs[0]

    def mean(part: str) -> Array:
        in_order = [[getattr(run, part)[run.tasks.index(task)] for task in tasks] for run in runs]
        return np.array(in_order).mean(axis=0)

    return Placement(first.name, first.rank, first.trainable, tasks, mean("learned"), mean("forgotten"))
