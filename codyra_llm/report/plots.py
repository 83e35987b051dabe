"""Figures from results alone: each is embedded in the page, and written as PNG and SVG into the run folder.

Text stays text in SVG, so that it can be selected, read aloud and set in a paper's font. Colors are those of Okabe and
Ito, viridis and RdBu, which color-blind readers can distinguish; lines differ in their markers as well.
"""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.files import write_text
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.schema import RunResults
from codyra_llm.results.summary import SuiteSummary, Summary

INK = "#1b1c1d"  # color of text and axes; a page replaces it by its own text color
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
MARKERS = "osD^v<>pPX*"
LONGEST_LABEL = 22
TASKS_IN_A_ROW = 8
MOST_NUMBERS = 500  # cells of a heat map; with more, numbers in them could not be read
MOST_LEVEL_LABELS = 8  # labels below an axis; with more, they are slanted
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # so that equal results give equal files


def style() -> dict[str, Any]:
    """Returns the matplotlib settings with which all pictures are drawn and saved."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return dict.fromkeys(inked, INK) | {
        "axes.facecolor": "none",
        "axes.prop_cycle": _matplotlib().cycler(color=COLORS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "font.size": 9,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "codyra_llm",
        "text.parse_math": False,  # names may have dollar signs
    }


def draw(of: Callable[[], Any]) -> Any:
    """Returns the figure that a function draws, with the project's style; its layout is fixed for all formats."""
    with _styled():
        figure = of()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure, in the format given by the path's suffix."""
    with _styled():
        if path.suffix == ".svg":
            write_text(path, as_svg(figure))
        else:
            figure.savefig(path, dpi=120)


def as_svg(figure: Any) -> str:
    """Returns a figure as the text of an SVG file, without a background."""
    with _styled(), io.StringIO() as stream:
        figure.savefig(stream, format="svg", facecolor="none", metadata=NO_METADATA)
        return stream.getvalue()


def write_picture(figure: Any, folder: Path, name: str, label: str) -> str:
    """Writes a figure as PNG and SVG into a folder; returns it as an element of a page (`inline_svg`)."""
    text = as_svg(figure)
    save_figure(figure, folder / f"{name}.png")
    write_text(folder / f"{name}.svg", text)
    return inline_svg(text, name, label)


def inline_svg(text: str, name: str, label: str) -> str:
    """Returns an SVG file as an element of a page; its ids begin with `name`, `label` is for screen readers."""
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", text)
    size = re.search(r'viewBox="0 0 ([\d.]+)', text)
    natural = 4 / 3 * float(size[1]) if size else 0  # pixels, as large as in a paper
    width = f'style="min-width: {0.8 * natural:.0f}px; max-width: {1.3 * natural:.0f}px" '
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # of the element itself, which is first
    return text.replace("<svg", f'<svg {width}role="img" aria-label="{escape(label, quote=True)}"', 1)


def summary_figure(summary: Summary, suites: Sequence[SuiteSummary] = ()) -> Any:
    """Plots each task before learning, just learned and now, with 95 % intervals; general ability is below."""
    of_suites = [each for each in suites if each.unit == "percent"]
    names = [short(each.task) for each in summary.tasks] + [short(each.suite) for each in of_suites]
    figure, axes = make_figure((4.5, 1.1 + 0.32 * len(names)))
    points: dict[str, list[tuple[float, int, Estimate | None]]] = {"base": [], "learned": [], "now": []}
    for row, task in enumerate(summary.tasks):
        for name, of_point in points.items():
            if found := getattr(task, name):
                of_point.append((found.value, row, found if name != "base" else None))
        _join(axes, row, task.base, task.learned, COLORS[7], 1)
        _join(axes, row, task.learned, task.now, COLORS[1] if task.lost and task.lost.value > 0 else COLORS[0], 3)
    for row, suite in enumerate(of_suites, len(summary.tasks)):
        points["base"].append((suite.base, row, None))
        change = suite.change
        at = Estimate(suite.now, suite.base + change.low, suite.base + change.high) if change else None
        points["now"].append((suite.now, row, at))
    for (name, of_point), marker, shift in zip(points.items(), ("o", "D", "o"), (0, -0.17, 0.17), strict=True):
        face = {"base": "none", "learned": COLORS[2], "now": INK}[name]
        edge = INK if name == "base" else face
        for _, row, found in of_point:
            if found:
                axes.plot([found.low, found.high], [row + shift] * 2, color=face, linewidth=1, alpha=0.6)
        xs, ys = [value for value, _, _ in of_point], [row for _, row, _ in of_point]
        said = {"base": "base model", "learned": "just learned", "now": "now"}[name]
        axes.scatter(xs, ys, marker=marker, facecolor=face, edgecolor=edge, s=30, zorder=3, label=said)
    if of_suites:
        axes.axhline(len(summary.tasks) - 0.5, color=INK, linewidth=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("score (0 to 100); thin lines: 95 % intervals")
    axes.grid(axis="x", linewidth=0.3, alpha=0.6)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _join(axes: Any, row: int, first: Estimate | None, last: Estimate | None, color: str, width: float) -> None:
    if first and last:
        axes.plot([first.value, last.value], [row, row], color=color, linewidth=width, zorder=1)


def matrix_figure(results: RunResults) -> Any:
    """Plots the score of each task (columns) after each task (rows); colors: change from just learned (framed)."""
    tasks = results.tasks
    scores = np.array([[np.nan if s is None else s for s in row] for row in results.matrix], dtype=float)
    change = scores - np.diag(scores[1:])
    change[np.triu_indices(len(tasks) + 1, k=0, m=len(tasks))] = np.nan  # not learned yet: no change to show
    figure, axes = heatmap(
        change,
        [short(stage.title, LONGEST_LABEL + 6) for stage in results.stages],
        list(map(short, tasks)),
        vmin=-50,
        vmax=50,
        label="change against just learned",
        form="{:.0f}",
        colors="RdBu",
        numbers=scores,
    )
    for t in range(len(tasks)):
        frame = _matplotlib().patches.Rectangle((t - 0.5, t + 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.5)
        axes.add_patch(frame)
    axes.set_title(f"Scores, variant {results.config['evaluate']['scorer_variant']}; framed: just learned")
    return figure


def ranks_figure(results: RunResults) -> Any:
    """Plots the mean surviving rank of each kind of projection (columns) in each task (rows)."""
    kinds = list(results.ranks[0].by_projection)
    ranks = np.array([[of_task.by_projection.get(kind, np.nan) for kind in kinds] for of_task in results.ranks])
    rows, initial = [short(of_task.task) for of_task in results.ranks], results.ranks[0].initial
    figure, axes = heatmap(ranks, rows, kinds, vmin=0, vmax=initial, label=f"rank (of {initial})", form="{:.1f}")
    axes.set_title("Mean surviving rank")
    return figure


def depth_figure(ranks: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], initial: int) -> Any:
    """Plots the kept rank over depth: layers to the right within each kind of projection, tasks downward.

    Args:
        ranks: kind of projection -> task -> (layer, rank).
        initial: rank at the start of a task.
    """
    tasks = list(dict.fromkeys(task for of_kind in ranks.values() for task in of_kind))
    layers = [1 + max(layer for found in of_kind.values() for layer, _ in found) for of_kind in ranks.values()]
    begins = list(itertools.accumulate(layers, initial=0))
    values = np.full((len(tasks), begins[-1]), np.nan)
    for begin, of_tasks in zip(begins, ranks.values(), strict=False):
        for task, found in of_tasks.items():
            for layer, rank in found:
                values[tasks.index(task), begin + layer] = rank
    figure, axes = make_figure((8.5, 1.2 + 0.2 * len(tasks)))
    image = axes.imshow(values, vmin=0, vmax=initial, cmap="viridis", aspect="auto", interpolation="none")
    axes.set_yticks(range(len(tasks)), map(short, tasks), fontsize=8)
    middles = [(begin + end - 1) / 2 for begin, end in itertools.pairwise(begins)]
    slanted = {"rotation": 30, "ha": "right"} if len(ranks) > MOST_LEVEL_LABELS else {}
    axes.set_xticks(middles, ranks, fontsize=8, **slanted)
    axes.set_xlabel("layers of each kind of projection, from the first")
    for begin in begins[1:-1]:
        axes.axvline(begin - 0.5, color="white", linewidth=1.5)
    figure.colorbar(image, label=f"kept rank (of {initial})")
    return figure


def curves_figure(results: RunResults) -> Any:
    """Plots loss, learning rate, threshold and live rank (if known) over the optimizer steps of the whole stream."""
    found = results.losses
    kinds = [("loss", f"loss (nats a {results.data.facts.unit})"), ("learning_rate", "learning rate"),
             ("threshold", "threshold"), ("live_rank", "live rank")]  # fmt: skip
    kinds = [kind for kind in kinds if any(any(getattr(task, kind[0])) for task in found)]
    figure, panels = make_panels(len(kinds), 1, (6.5, 0.8 + 1.3 * len(kinds)), sharex=True)
    borders = list(itertools.accumulate((len(task.loss) for task in found), initial=0))
    for axes, (name, label) in zip(panels, kinds, strict=True):
        for number, (task, begin) in enumerate(zip(found, borders, strict=False)):
            values = getattr(task, name)
            if len(values) != len(task.loss):  # an earlier version, which stored only the loss, ran some of the steps
                continue
            color = COLORS[number % 2]
            axes.plot(range(begin + 1, begin + 1 + len(values)), values, color=color, linewidth=1)
            if name == "loss" and task.validation:
                at = [begin + each.step for each in task.validation]
                losses = [each.loss for each in task.validation]
                axes.plot(at, losses, color=INK, marker=".", linewidth=0.8, label="validation" if not number else None)
        for border in borders[1:-1]:
            axes.axvline(border + 0.5, color=INK, linewidth=0.4, alpha=0.5)
        axes.set_ylabel(label)
        axes.margins(x=0.01)
    if found and found[0].validation:
        panels[0].legend()
    panels[-1].set_xlabel("optimizer step of the whole stream; lines: where a task ends")
    _name_tasks(panels[0], [task.task for task in found], borders)
    return figure


def _name_tasks(axes: Any, tasks: Sequence[str], borders: Sequence[int]) -> None:
    """Writes the tasks' names above a plot over steps; numbers if there are too many for names."""
    for number, (task, begin, end) in enumerate(zip(tasks, borders, borders[1:], strict=False), 1):
        label = short(task, 14) if len(tasks) <= 10 else str(number)
        axes.annotate(
            label,
            ((begin + end + 1) / 2, 1.03),
            xycoords=("data", "axes fraction"),
            rotation=35 if len(tasks) <= 10 else 0,
            fontsize=7,
            ha="left" if len(tasks) <= 10 else "center",
        )


def likelihood_figure(results: RunResults) -> Any:
    """Plots the NLL of the reference answers of each task, side by side, after every task; a mark: just learned."""
    tasks, width = results.tasks, len(results.stages) + 1
    rows = -(-len(tasks) // TASKS_IN_A_ROW)
    figure, panels = make_panels(rows, 1, (8.5, 0.5 + 1.8 * rows), sharey=True)
    for row, axes in enumerate(panels):
        shown = range(row * TASKS_IN_A_ROW, min(len(tasks), (row + 1) * TASKS_IN_A_ROW))
        for place, number in enumerate(shown):
            nll = [np.nan if of_stage[number] is None else of_stage[number] for of_stage in results.answer_nll]
            xs = [place * width + stage for stage in range(len(nll))]
            axes.plot(xs, nll, marker=".", linewidth=1, color=COLORS[0])
            axes.plot(xs[number + 1], nll[number + 1], marker="D", color=COLORS[1], linestyle="none")
        places = range(len(shown))
        axes.set_xticks([place * width + width / 2 - 1 for place in places], [short(tasks[n], 14) for n in shown])
        axes.tick_params(axis="x", labelsize=8, length=0)
        for place in places[1:]:
            axes.axvline(place * width - 1, color=INK, linewidth=0.3)
        axes.set_ylabel(f"NLL, nats a {results.data.facts.unit}")
    panels[-1].set_xlabel("each task from the base model to the last stage; diamond: just learned")
    return figure


def general_figure(results: RunResults) -> Any:
    """Plots each suite of general ability (lines, with standard errors) after each task; a panel for each unit."""
    found = results.general.scores
    suites = list(dict.fromkeys(suite for of_stage in found.values() for suite in of_stage))
    lines: dict[str, dict[str, list[tuple[int, SuiteScore]]]] = {}  # unit -> suite -> (position, score)
    for suite in suites:
        scores = [(x, of_stage.get(suite)) for x, of_stage in enumerate(found.values())]
        measured = [(x, score) for x, score in scores if isinstance(score, SuiteScore)]
        if measured:
            lines.setdefault(measured[0][1].unit, {})[suite] = measured
    count = max(1, len(lines))
    figure, panels = make_panels(count, 1, (max(4.5, 2 + 0.5 * len(found)), 0.8 + 2.2 * count), sharex=True)
    for axes, (unit, of_suites) in zip(panels, lines.items(), strict=False):
        for number, (suite, measured) in enumerate(of_suites.items()):
            axes.errorbar(
                [x for x, _ in measured],
                [score.score for _, score in measured],
                yerr=[score.stderr or 0 for _, score in measured],
                marker=MARKERS[number % len(MARKERS)],
                capsize=3,
                label=short(suite),
            )
        axes.set_ylabel("score (0 to 100)" if unit == "percent" else f"{short(unit)} (lower is better)")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0].set_title("General ability (bars: standard errors)")
    panels[-1].set_xticks(range(len(found)), map(short, found), rotation=30, ha="right")
    return figure


def heatmap(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    vmin: float,
    vmax: float,
    label: str,
    form: str,
    colors: str = "viridis",
    numbers: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Returns a figure and its axes with values [rows, columns] as colors, and numbers in the cells if there is room.

    Args:
        values: [rows, columns]; NaN cells have no color.
        rows, columns: labels.
        vmin, vmax: values of the first and the last color.
        label: of the color bar.
        form: format of the numbers.
        colors: name of a matplotlib color map.
        numbers: [rows, columns], shown in the cells instead of the values.
    """
    has_numbers = values.size <= MOST_NUMBERS
    width, height = (0.75, 0.36) if has_numbers else (0.25, 0.2)
    figure, axes = make_figure((2.5 + width * len(columns), 1.4 + height * len(rows)))
    image = axes.imshow(values, vmin=vmin, vmax=vmax, cmap=colors, aspect="auto", interpolation="none")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for (i, j), number in np.ndenumerate(values if numbers is None else numbers):
        if has_numbers and not np.isnan(number):
            shade = image.cmap(image.norm(values[i, j])) if not np.isnan(values[i, j]) else None
            light = shade is None or shade[0] * 0.3 + shade[1] * 0.6 + shade[2] * 0.1 > 0.5
            color = INK if shade is None else "black" if light else "white"
            axes.text(j, i, form.format(number), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label=label)
    return figure, axes


def make_figure(size: tuple[float, float]) -> tuple[Any, Any]:
    """Returns a figure of the given size in inches, and its axes."""
    figure, panels = make_panels(1, 1, size)
    return figure, panels[0]


def make_panels(rows: int, columns: int, size: tuple[float, float], **how: Any) -> tuple[Any, list[Any]]:
    """Returns a figure of the given size in inches, and the axes of its panels, row by row."""
    figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **how).flat)


def short(name: str, longest: int = LONGEST_LABEL) -> str:
    """Returns a name as a label, with its middle left out if it is too long."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


@contextmanager
def _styled() -> Iterator[None]:
    with _matplotlib().rc_context(style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")  # names in scripts that the font lacks
        yield


def _matplotlib() -> Any:
    import matplotlib  # takes over half a second, which a run should spend at its end and not at its start
    import matplotlib.figure
    import matplotlib.patches

    return matplotlib
