"""Predictors of forgetting: the rank correlation of a run's measures with its forgetting, over all runs of a grid."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from codyra_llm.results.comparison import DRAWS, Estimate, interval

PREDICTORS = ("update_norm", "drift", "rank", "bound", "kl_own", "kl_earlier", "kl_text")
FEWEST = 4  # runs; a rank correlation of fewer is not meaningful


def predictors(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Estimate]:
    """Returns Spearman's rank correlation of each of `PREDICTORS` with `nll_forgotten`; 1: larger values forget more.

    Args:
        runs: the measures of each run, of all contestants.

    Returns:
        {measure: correlation, with the interval of a bootstrap over runs}. Runs without a measure are left out of its
        correlation; measures with fewer than `FEWEST` runs, or with equal values in all runs, are left out.
    """
    found = {}
    for name in PREDICTORS:
        pairs = [(run.get(name), run.get("nll_forgotten")) for run in runs]
        known = np.array([pair for pair in pairs if None not in pair], dtype=float)
        if len(known) < FEWEST or len(np.unique(known[:, 0])) < 2:
            continue
        random = np.random.default_rng(0)
        draws = [_correlation(known[random.integers(len(known), size=len(known))]) for _ in range(DRAWS)]
        estimate = interval(_correlation(known), np.array([draw for draw in draws if np.isfinite(draw)]))
        if estimate:
            found[name] = estimate
    return found


def _correlation(pairs: NDArray[np.float64]) -> float:
    """Returns the rank correlation of pairs [runs, 2]; NaN if one column is constant."""
    ranks = np.stack([_ranks(column) for column in pairs.T])
    ranks -= ranks.mean(axis=1, keepdims=True)
    product = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return float((ranks[0] * ranks[1]).sum()) / product if product else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the ranks of values, from 1 on; equal values get the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[which]
