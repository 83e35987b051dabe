"""Intervals of scores: wide for few rows, those of the normal distribution for many, and with correct coverage."""

import numpy as np
import pytest

from codyra_llm.results import intervals
from codyra_llm.results.comparison import Estimate


def test_five_rows_look_like_five() -> None:
    few, many = (intervals.of_mean(np.zeros(rows)) for rows in (5, 500))
    assert few.value == few.low == many.low == 0
    assert few.high > 40 > 2 > many.high
    same = intervals.of_change(np.full(5, 100.0), np.full(5, 100.0))
    assert same.value == 0 and same.low < -20 and same.high > 20


def test_with_many_rows_it_is_the_normal_interval() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.uniform(0, 100, (2, 5000))
    found = intervals.of_change(before, after)
    error = (after - before).std(ddof=1) / 5000**0.5
    assert found.value == pytest.approx((after - before).mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.01)


@pytest.mark.parametrize(("share", "rows"), [(0.5, 10), (0.1, 20), (0.9, 100), (0.02, 50)])
def test_a_mean_is_covered_as_often_as_is_said(share: float, rows: int) -> None:
    draw = np.random.default_rng(1)
    found = [intervals.of_mean(100.0 * (draw.random(rows) < share)) for _ in range(500)]
    assert np.mean([each.low <= 100 * share <= each.high for each in found]) > 0.92


@pytest.mark.parametrize(("lost", "won", "rows"), [(0.1, 0.1, 20), (0.3, 0.05, 40), (0.02, 0.0, 100)])
def test_a_paired_change_is_covered(lost: float, won: float, rows: int) -> None:
    draw = np.random.default_rng(2)
    covered = []
    for _ in range(500):
        chance = draw.random(rows)
        before, after = 100.0 * (chance < 0.6 - won), 100.0 * (chance < 0.6 - won)
        after = np.where(chance < lost, 0.0, np.where(chance > 1 - won, 100.0, after))
        found = intervals.of_change(before, after)
        covered.append(found.low <= 100 * (won - lost) <= found.high)
    assert np.mean(covered) > 0.92


def test_of_numbers_alone_and_of_several() -> None:
    assert intervals.of_counts(70.0, 10) == intervals.of_mean(np.repeat([100.0, 0.0], [7, 3]))
    each = Estimate(10.0, 4.0, 16.0)
    found = intervals.of_mean_over([each] * 4)
    assert found and (found.low, found.high) == pytest.approx((7.0, 13.0))
    assert intervals.of_mean_over([]) is None
    apart = intervals.of_difference(each, Estimate(20.0, 12.0, 28.0))
    assert (apart.value, apart.low, apart.high) == pytest.approx((10.0, 0.0, 20.0))
    assert intervals.negative(each) == Estimate(-10.0, -16.0, -4.0)
