"""Statistics of a comparison: means over runs, paired differences with intervals, and forgetting at equal learning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codyra_llm.results.measures import RowLosses

DRAWS, CONFIDENCE = 2000, 0.95
RunKey = tuple[str, int]  # order and seed
Losses = Mapping[RunKey, Sequence[RowLosses]]  # of one contestant: run -> losses of each task's rows
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """True if the interval does not contain zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Contestant:
    """A contestant of a comparison: one row of the table.

    Attributes:
        name: of the contestant.
        variant: name of its variant.
        strength: of the variant; None if it has none.
        settings: that it differs in.
        runs: number of finished runs.
        mean: measure -> mean over runs; None if no run has it.
        deviation: measure -> sample standard deviation over runs; None for fewer than two runs.
        difference: measure -> this contestant minus the reference contestant, over the runs that both have.
        excess: forgetting above the line at the same learning; None if the line does not reach it.
        failed: errors of the runs that failed.
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
    """Returns the mean over tasks of the rows' NLL right after the task was learned."""
    return float(np.mean([task.learned.mean() for task in losses]))


def forgotten(losses: Sequence[RowLosses]) -> float:
    """Returns the mean over all tasks but the last of the rise of the rows' NLL until the end; 0 for a single task."""
    return float(np.mean([(task.last - task.learned).mean() for task in losses[:-1]])) if len(losses) > 1 else 0.0


def last(losses: Sequence[RowLosses]) -> float:
    """Returns the mean over tasks of the rows' NLL at the end."""
    return float(np.mean([task.last.mean() for task in losses]))


OF_ROWS: dict[str, Callable[[Sequence[RowLosses]], float]] = {
    "nll_learned": learned,
    "nll_forgotten": forgotten,
    "nll_final": last,
}


class Resampling:
    """Bootstrap draws, the same for every contestant: draw d consists of runs[d] and, for each task, rows[task][d].

    Args:
        runs: number of runs.
        rows: number of rows of each task.
        seed: of the draws.
    """

    def __init__(self, runs: int, rows: Sequence[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.runs = random.integers(runs, size=(DRAWS, runs))
        self.rows = [random.integers(count, size=(DRAWS, count)) for count in rows]

    def means(self, losses: Sequence[Sequence[RowLosses]]) -> tuple[Array, Array]:
        """Returns (learned, last), [draws, tasks] each: means over the runs and rows of each draw.

        Args:
            losses: of each run, in an order that is the same for all contestants.
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
    """Returns the values of `OF_ROWS` in each draw: [draws]."""
    own, end = resampling.means(losses)
    return {
        "nll_learned": own.mean(axis=1),
        "nll_forgotten": (end - own)[:, :-1].mean(axis=1) if own.shape[1] > 1 else np.zeros(len(own)),
        "nll_final": end.mean(axis=1),
    }


def interval(value: float, draws: Array) -> Estimate | None:
    """Returns a value with the 95 % interval of its bootstrap draws [draws]; None if one of them is not finite."""
    if not np.isfinite(value) or not np.isfinite(draws).all():
        return None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high))


def _common(*contestants: Losses) -> list[RunKey]:
    """Returns the runs that all contestants have."""
    return [run for run in contestants[0] if all(run in other for other in contestants)]


def difference(ours: Losses, theirs: Losses) -> dict[str, Estimate]:
    """Returns the values of `OF_ROWS` of one contestant minus those of another, paired by run and by row."""
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
    """Returns the forgetting above a line at the same learning; below zero, less is forgotten than on the line.

    The line connects its points in the order of their learning; forgetting is interpolated between the two points whose
    NLL right after learning encloses that of `ours`. The bootstrap uses the same draws of runs and rows for all points.

    Args:
        ours: the losses of a contestant.
        line: the losses of a method at several strengths; strength zero, which learns and forgets nothing, may be
            included.

    Returns:
        The estimate; None if `ours` learns more or less than all points of the line, has no run in common with them, or
        a value is not finite.
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
    """Returns the forgetting of a line at a given learning; outside of the line, that of its end (`beyond`) or None."""
    xs, ys = zip(*sorted(line), strict=True)
    if not beyond and not xs[0] <= learning <= xs[-1]:
        return None
    return float(np.interp(learning, xs, ys))


def _resampling(losses: Sequence[Sequence[RowLosses]]) -> Resampling:
    return Resampling(len(losses), [len(task.last) for task in losses[0]])


def _mean(of: Callable[[Sequence[RowLosses]], float], losses: Sequence[Sequence[RowLosses]]) -> float:
    return float(np.mean([of(of_run) for of_run in losses]))


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Returns mean and sample standard deviation over the runs with a value; None without enough of these."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None, None
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None
