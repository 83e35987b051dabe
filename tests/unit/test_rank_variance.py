"""Statistics of kept ranks: variance components compared with known ones, and folders that do not belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codyra_llm.errors import UserError
from codyra_llm.report.predictors import read_runs
from codyra_llm.results.rank_variance import read_ranks, variance_shares


def ranks(task: float, projection: float, both: float, noise: float, runs: int = 4) -> np.ndarray:
    """Returns ranks [runs, tasks, projections] that are sums of effects with known standard deviations."""
    draw = np.random.default_rng(0)
    means = task * draw.normal(size=(60, 1)) + projection * draw.normal(size=60) + both * draw.normal(size=(60, 60))
    return 8 + means + noise * draw.normal(size=(runs, 60, 60))


@pytest.mark.parametrize("sizes", [(1, 2, 0.5, 1), (0, 0, 0, 1), (3, 1, 1, 0.1), (0, 2, 0, 2)])
def test_components_are_found(sizes: tuple[float, float, float, float]) -> None:
    found = variance_shares(ranks(*sizes))
    expected = np.square(sizes) / np.square(sizes).sum()
    assert (found.task, found.projection, found.both, found.noise) == pytest.approx(tuple(expected), abs=0.12)
    assert found.explained + found.noise == pytest.approx(1)


def test_ranks_that_do_not_differ_explain_nothing() -> None:
    assert variance_shares(np.full((2, 3, 4), 8.0)).explained == 0


def test_one_run_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 run: what a seed changes"):
        read_ranks([tmp_path])
    with pytest.raises(UserError, match=r"results\.json"):
        read_ranks([tmp_path, tmp_path / "other"])


@pytest.mark.parametrize("read", [read_ranks, read_runs])
def test_a_folder_counts_once(read: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is given twice; give each folder once"):
        read([tmp_path, tmp_path / ".." / tmp_path.name])
