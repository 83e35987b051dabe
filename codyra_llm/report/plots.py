"""Plots for the run folder, made from results.json and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.results.schema import RunResults


def plot_matrix(results: RunResults, path: Path) -> None:
    """Score of each task (columns) after each task (rows, the base model first); framed: the task just learned."""
    tasks = results.tasks
    scores = np.array([[np.nan if s is None else s for s in row] for row in results.matrix])
    rows = [stage.title for stage in results.stages]
    figure, axes = heatmap(scores, rows, tasks, vmin=0, vmax=100, label="score (0 to 100)", form="{:.0f}")
    for t in range(len(tasks)):
        axes.add_patch(_pyplot().Rectangle((t - 0.5, t + 0.5), 1, 1, fill=False, edgecolor="crimson", linewidth=1.5))
    axes.set_title(f"Scores, variant {results.config['evaluate']['scorer_variant']}")
    save_figure(figure, path)


def plot_ranks(results: RunResults, path: Path) -> None:
    """Mean surviving rank of each kind of projection (columns) in each task (rows)."""
    kinds = list(results.ranks[0].by_projection)
    ranks = np.array([[of_task.by_projection[kind] for kind in kinds] for of_task in results.ranks])
    rows, initial = [of_task.task for of_task in results.ranks], results.ranks[0].initial
    figure, axes = heatmap(ranks, rows, kinds, vmin=0, vmax=initial, label=f"rank (of {initial})", form="{:.1f}")
    axes.set_title("Mean surviving rank")
    save_figure(figure, path)


def plot_general(results: RunResults, path: Path) -> None:
    """Each suite of general ability (lines, with standard errors) after each task; a panel for each unit."""
    found = results.general.scores
    suites = list(dict.fromkeys(suite for of_stage in found.values() for suite in of_stage))
    lines: dict[str, dict[str, list[tuple[int, SuiteScore]]]] = {}  # unit -> suite -> (position, score)
    for suite in suites:
        scores = [(x, of_stage.get(suite)) for x, of_stage in enumerate(found.values())]
        measured = [(x, score) for x, score in scores if isinstance(score, SuiteScore)]
        if measured:
            lines.setdefault(measured[0][1].unit, {})[suite] = measured
    size = (3 + 0.8 * len(found), 1 + 3 * max(1, len(lines)))
    figure, panels = _pyplot().subplots(max(1, len(lines)), figsize=size, sharex=True, squeeze=False)
    for axes, (unit, of_suites) in zip(panels[:, 0], lines.items(), strict=False):
        for suite, measured in of_suites.items():
            axes.errorbar(
                [x for x, _ in measured],
                [score.score for _, score in measured],
                yerr=[score.stderr or 0 for _, score in measured],
                marker="o",
                capsize=3,
                label=suite,
            )
        axes.set_ylabel("score (0 to 100)" if unit == "percent" else f"{unit} (lower is better)")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0, 0].set_title("General ability")
    panels[-1, 0].set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    save_figure(figure, path)


def heatmap(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], vmin: float, vmax: float, label: str, form: str
) -> tuple[Any, Any]:
    """A figure and its axes with values [rows, columns] as colors, each with its number."""
    figure, axes = _pyplot().subplots(figsize=(2.5 + 0.9 * len(columns), 1.8 + 0.45 * len(rows)))
    image = axes.imshow(values, vmin=vmin, vmax=vmax, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "black" if value > vmin + 0.6 * (vmax - vmin) else "white"
            axes.text(j, i, form.format(value), ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, label=label)
    return figure, axes


def make_figure(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    figure, axes = _pyplot().subplots(figsize=size)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure and frees it."""
    figure.savefig(path, dpi=120, bbox_inches="tight")
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib  # takes over half a second, which a run spends at its end rather than at its start

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
