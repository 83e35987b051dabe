"""What `probe placement` and `probe predictors` read of a comparison: runs of the same tasks, and only such points."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codyra_llm.config.grid import Grid, grid_runs, points
from codyra_llm.errors import UserError
from codyra_llm.report import comparison, placement
from codyra_llm.results.measures import RowLosses

NLL = {"first": 1.0, "second": 2.0}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Function that writes a comparison whose runs have learned the tasks of their order, and returns its folder."""

    def write(grid: Grid, missing: Sequence[str] = ()) -> Path:
        runs = {tmp_path / each.folder: each for each in grid_runs(grid) if each.folder not in missing}
        for run in runs:
            run.mkdir(parents=True)
            (run / "results.json").touch()

        def results(run: Path) -> Any:
            rank = runs[run].point.settings.get("adapter.rank", 8)
            tasks = runs[run].order.split("-")
            return SimpleNamespace(config={"adapter": {"rank": rank}}, tasks=tasks, trainable_parameters=1)

        def losses(found: Any, run: Path) -> list[RowLosses]:
            more = runs[run].point.strength or 0.0
            return [RowLosses(np.full(3, NLL[task] + more), np.full(3, NLL[task] + more)) for task in found.tasks]

        monkeypatch.setattr(comparison, "read_comparison", lambda of: SimpleNamespace(grid=grid))
        monkeypatch.setattr(placement, "read_results", results)
        monkeypatch.setattr(placement, "row_losses", losses)
        return tmp_path

    return write


GRID = Grid(methods=("lora",), seeds=(1,), orders=("first-second",))


def test_points_of_another_strength_are_left_out(folder: Any) -> None:
    curves = {"lora": {"adapter.threshold_strength": [0.5], "merge.scale": [0.3], "adapter.rank": [2]}}
    found = placement.read_placements(folder(dataclasses.replace(GRID, curves=curves)))
    assert [(each.rank, list(each.learned)) for each in found] == [(8, [1, 2]), (2, [3, 4])]


def test_tasks_have_one_order_whatever_has_finished(folder: Any) -> None:
    grid = dataclasses.replace(GRID, methods=("lora", "codyra"), orders=("first-second", "second-first"))
    found = placement.read_placements(folder(grid, missing=["codyra/first-second-seed1"]))
    assert [(each.tasks, list(each.learned)) for each in found] == [(["first", "second"], [1, 2])] * 2


def test_orders_of_other_tasks_are_refused(folder: Any) -> None:
    with pytest.raises(UserError, match="its runs learned first and first, second; placements are compared on"):
        placement.read_placements(folder(dataclasses.replace(GRID, orders=("first-second", "first"))))


def test_a_line_that_is_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="line 'nope' is neither a variant nor a method"):
        points(dataclasses.replace(GRID, line="nope"))
    assert points(dataclasses.replace(GRID, line="seqlora")), "one that does not take part leaves its column empty"
