"""95 % intervals of scores over test rows, and of changes paired by row, which stay wide if there are few rows.

Five rows that all score 0 are little evidence, but their sample deviation is 0. Therefore two rows of 0 and two of 100
are added for a mean (Agresti and Coull, 1998), and a row of +100 and one of -100 for a paired change (Bonett and Price,
2012). With many rows both become the normal interval.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codyra_llm.results.comparison import Estimate

Array = NDArray[np.float64]
QUANTILE = 1.959964  # of the normal distribution, for 95 %
TOP = 100.0  # highest score


def of_mean(scores: Array) -> Estimate:
    """Returns the mean of scores [rows], 0 to 100; NaN, for a row without a score, counts as 0."""
    return _adjusted(scores, np.array([0.0, 0.0, TOP, TOP]), 0.0)


def of_change(before: Array, after: Array) -> Estimate:
    """Returns the mean change of the same rows from `before` to `after`: [rows] each."""
    return _adjusted(after - before, np.array([-TOP, TOP]), -TOP)


def of_counts(percent: float, rows: int) -> Estimate:
    """Returns what `of_mean` does, from the mean and the number of rows alone; each row is assumed to be 0 or 100."""
    right = round(percent / TOP * rows)
    return moved(of_mean(np.repeat([TOP, 0.0], [right, rows - right])), percent)


def of_difference(before: Estimate, after: Estimate) -> Estimate:
    """Returns the difference of two independently measured values."""
    return Estimate(
        after.value - before.value,
        after.value - before.value - math.hypot(after.value - after.low, before.high - before.value),
        after.value - before.value + math.hypot(after.high - after.value, before.value - before.low),
    )


def of_mean_over(estimates: Sequence[Estimate]) -> Estimate | None:
    """Returns the mean of independently measured values; None if there are none."""
    if not estimates:
        return None
    value = sum(each.value for each in estimates) / len(estimates)
    low = math.hypot(*(each.value - each.low for each in estimates)) / len(estimates)
    high = math.hypot(*(each.high - each.value for each in estimates)) / len(estimates)
    return Estimate(value, value - low, value + high)


def of_error(value: float, standard_error: float | None) -> Estimate | None:
    """Returns a value with the interval of its standard error; None without one."""
    if standard_error is None:
        return None
    return Estimate(value, value - QUANTILE * standard_error, value + QUANTILE * standard_error)


def negative(found: Estimate | None) -> Estimate | None:
    """Returns an estimate with the opposite sign (a loss, from a change); None for None."""
    return Estimate(-found.value, -found.high, -found.low) if found else None


def moved(found: Estimate, value: float) -> Estimate:
    """Returns an estimate with another value, its interval extended to include it, to undo the rounding of rows."""
    return Estimate(value, min(found.low, value), max(found.high, value))


def _adjusted(rows: Array, added: Array, bottom: float) -> Estimate:
    rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    values = np.concatenate([rows, added])
    center, half = float(values.mean()), QUANTILE * float(values.std()) / math.sqrt(len(values))
    value = float(rows.mean()) if len(rows) else center
    return Estimate(value, min(max(center - half, bottom), value), max(min(center + half, TOP), value))
