"""Validation during a task ends it early and keeps the best step, in every way of running and after interruptions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_resume import assert_same_run, config_of, run_sessions

VALIDATED = {
    "train.validation": 0.25,
    "train.validate_every": 1,
    "train.early_stopping": 2,
    "train.keep_best": True,
    "train.num_train_epochs": 3,
    "train.learning_rate": 0.05,
}


def losses_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["losses"]
    return found


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated") / "run"
    config = config_of(tiny_folder, folder, **VALIDATED)
    before = config_of(tiny_folder, folder.with_name("before"), **VALIDATED)  # fills the caches
    assert run_sessions({"config": before}, {"config": config}) == [[0], [0]]
    return folder


def test_a_task_ends_when_its_validation_loss_no_longer_falls(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    stopped = False
    for task, losses in zip(results["data"]["tasks"], results["losses"], strict=True):
        assert task["validation_rows"] > 0
        assert [found["step"] for found in losses["validation"]] == list(range(1, len(losses["loss"]) + 1))
        values = [found["loss"] for found in losses["validation"]]
        assert losses["kept_step"] == 1 + values.index(min(values))
        assert len(values) - losses["kept_step"] == 2 or len(values) == task["steps"]
        stopped |= len(values) < task["steps"]
    assert stopped


@pytest.mark.parametrize("point", ["training step:3", "training step:5", "checkpoint:2", "ledger entry:1"])
def test_killed_and_resumed_it_is_the_same(whole: Path, tiny_folder: Path, tmp_path: Path, point: str) -> None:
    config = config_of(tiny_folder, tmp_path / "run", **VALIDATED)
    assert run_sessions({"config": config, "strike": [0, point, "SIGKILL"]}, {"config": config}) == [[-9], [0]]
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("stage", [2, 3])
def test_on_two_ranks_it_is_the_same(whole: Path, tiny_folder: Path, tmp_path: Path, stage: int) -> None:
    how = {**VALIDATED, "deepspeed": f"ds_configs/zero{stage}.json"}
    assert run_sessions({"config": config_of(tiny_folder, tmp_path / "run", **how), "ranks": 2}) == [[0, 0]]
    for ours, theirs in zip(losses_of(tmp_path / "run"), losses_of(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert [found["step"] for found in ours["validation"]] == [found["step"] for found in theirs["validation"]]
        values = [found["loss"] for found in ours["validation"]]
        assert values == pytest.approx([found["loss"] for found in theirs["validation"]], abs=1e-4)
        assert ours["kept_step"] == theirs["kept_step"]
