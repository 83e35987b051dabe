"""What a comparison shows: means over runs, paired differences with intervals, and forgetting at equal learning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codyra_llm.results.measures import RowLosses

DRAWS, CONFIDENCE = 2000, 0.95
RunKey = tuple[str, int]  # order and seed
Losses = Mapping[RunKey, Sequence[RowLosses]]  # of one contestant: run -> task -> its rows
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that bootstrap over runs and rows gives it with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        runs: how many have finished. failed: what the others ended with.
        mean, deviation: measure -> over runs; the deviation of one run is None.
        difference: measure -> this contestant minus the one that all are compared with, by the runs that both have.
        excess: forgetting above the line at the same learning; None where the line does not reach it.
    """

    name: str
    variant: str
    strength: float | None
    settings: dict[str, Any]
    runs: int
    mean: dict[str, float | None]
    deviation: dict[str, float | None]
    difference: dict[str, Estimate] = field(default_factory=dict)
    excess: Estimate | None = None
    failed: list[str] = field(default_factory=list)


def learned(losses: Sequence[RowLosses]) -> float:
    """Mean over tasks of the rows' NLL right after each was learned."""
    return float(np.mean([task.learned.mean() for task in losses]))


def forgotten(losses: Sequence[RowLosses]) -> float:
    """Mean over all tasks but the last of the rise of the rows' NLL until the end; 0 where there is one task."""
    return float(np.mean([(task.last - task.learned).mean() for task in losses[:-1]])) if len(losses) > 1 else 0.0


def last(losses: Sequence[RowLosses]) -> float:
    """Mean over tasks of the rows' NLL at the end."""
    return float(np.mean([task.last.mean() for task in losses]))


OF_ROWS: dict[str, Callable[[Sequence[RowLosses]], float]] = {
    "nll_learned": learned,
    "nll_forgotten": forgotten,
    "nll_final": last,
}


class Resampling:
    """The same draws of runs and rows for every contestant: draw d takes runs[d] and, of each task, rows[task][d].

    Args:
        runs: how many. rows: of each task. seed: of the draws.
    """

    def __init__(self, runs: int, rows: Sequence[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.runs = random.integers(runs, size=(DRAWS, runs))
        self.rows = [random.integers(count, size=(DRAWS, count)) for count in rows]

    def means(self, losses: Sequence[Sequence[RowLosses]]) -> tuple[Array, Array]:
        """(learned, last) of each task, run and draw: [draws, tasks], averaged over the runs and rows of the draw.

        Args:
            losses: of each run, in the order that all contestants have.
        """
        tasks = range(len(self.rows))
        by_kind = []
        for kind in ("learned", "last"):
            of_tasks = []
            for task in tasks:
                whole = np.stack([getattr(of_run[task], kind) for of_run in losses])  # [runs, rows]
                of_runs = whole[:, self.rows[task]].mean(axis=2).T  # [draws, runs]
                of_tasks.append(np.take_along_axis(of_runs, self.runs, axis=1).mean(axis=1))
            by_kind.append(np.stack(of_tasks, axis=1))
        return by_kind[0], by_kind[1]


def _of_draws(resampling: Resampling, losses: Sequence[Sequence[RowLosses]]) -> dict[str, Array]:
    """The values of `OF_ROWS` in each draw: [draws]."""
    own, end = resampling.means(losses)
    return {
        "nll_learned": own.mean(axis=1),
        "nll_forgotten": (end - own)[:, :-1].mean(axis=1) if own.shape[1] > 1 else np.zeros(len(own)),
        "nll_final": end.mean(axis=1),
    }


def interval(value: float, draws: Array) -> Estimate | None:
    """A value with the interval of its bootstrap draws [draws]; None where one is not finite."""
    if not np.isfinite(value) or not np.isfinite(draws).all():
        return None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high))


def _common(*contestants: Losses) -> list[RunKey]:
    """The runs that all have."""
    return [run for run in contestants[0] if all(run in other for other in contestants)]


def difference(ours: Losses, theirs: Losses) -> dict[str, Estimate]:
    """The values of `OF_ROWS` of one contestant minus those of another, paired by run and by row."""
    runs = _common(ours, theirs)
    if not runs:
        return {}
    pairs = [[each[run] for run in runs] for each in (ours, theirs)]
    resampling = _resampling(pairs[0])
    draws = [_of_draws(resampling, losses) for losses in pairs]
    found = {
        name: interval(_mean(of, pairs[0]) - _mean(of, pairs[1]), draws[0][name] - draws[1][name])
        for name, of in OF_ROWS.items()
    }
    return {name: estimate for name, estimate in found.items() if estimate}


def excess(ours: Losses, line: Sequence[Losses]) -> Estimate | None:
    """Forgetting above a line at the same learning: below zero, less is forgotten than by a method of that line.

    The line joins its points, in the order of their learning; forgetting is interpolated between the two whose NLL when
    learned encloses ours. The same draws of runs and rows move all points.

    Args:
        line: the points of a method at several strengths. That of strength zero, which learns and forgets nothing, may
            be among them.

    Returns:
        None where ours learns more, or less, than any point of the line, or has no run in common with them.
    """
    runs = _common(ours, *line) if line else []
    if not runs:
        return None
    every = [[each[run] for run in runs] for each in (ours, *line)]
    values = [(_mean(learned, losses), _mean(forgotten, losses)) for losses in every]
    if not np.isfinite(values).all():
        return None
    at = _interpolated(values[0][0], values[1:])
    if at is None:
        return None
    resampling = _resampling(every[0])
    draws = [_of_draws(resampling, losses) for losses in every]
    drawn = []
    for number in range(DRAWS):
        point, *others = [(float(draw["nll_learned"][number]), float(draw["nll_forgotten"][number])) for draw in draws]
        there = _interpolated(point[0], others, beyond=True)
        drawn.append(point[1] - there)  # type: ignore[operator]
    return interval(values[0][1] - at, np.array(drawn))


def _interpolated(learning: float, line: Sequence[tuple[float, float]], beyond: bool = False) -> float | None:
    """The forgetting of a line at a learning; outside of it its end's (`beyond`), or None."""
    xs, ys = zip(*sorted(line), strict=True)
    if not beyond and not xs[0] <= learning <= xs[-1]:
        return None
    return float(np.interp(learning, xs, ys))


def _resampling(losses: Sequence[Sequence[RowLosses]]) -> Resampling:
    return Resampling(len(losses), [len(task.last) for task in losses[0]])


def _mean(of: Callable[[Sequence[RowLosses]], float], losses: Sequence[Sequence[RowLosses]]) -> float:
    return float(np.mean([of(of_run) for of_run in losses]))


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Over the runs that have a value; the deviation is that of a sample, None of fewer than two."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None, None
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None
