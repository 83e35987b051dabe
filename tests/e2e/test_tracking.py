"""Weights & Biases and MLflow, the real libraries, offline: one record for each run, for any number of starts."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from codyra_llm import run
from codyra_llm.engine.train import StepReport
from codyra_llm.errors import Stopped, UserError
from codyra_llm.report.reporter import Reporter
from codyra_llm.results.schema import RunResults
from codyra_llm.workflows.dry_run import dry_run
from tests.e2e.test_checkpoints import config_of


def wandb_records(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns (id, logged rows) of each start of a run, from the files that W&B would upload."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        rows, name = [], ""
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            name = record.run.run_id or name
            if row := {".".join(each.nested_key) or each.key: each.value_json for each in record.history.item}:
                rows.append({key: json.loads(value) for key, value in row.items()})
        found.append((name, rows))
    return found


def log_records(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format: parts in blocks, each with checksum, length and kind."""
    at, record = 7, b""  # the file's own header
    while at + 7 <= len(content):
        if block - at % block < 7:  # the end of a block is padding
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


@pytest.fixture(scope="module")
def tracked(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    """Folder and results of a run of two tasks that was stopped in its second task and resumed."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    config = config_of(tiny_folder, folder, tracking=["wandb", "mlflow"])

    def estimate(self: Reporter, report: StepReport, tokens: object, task: int, steps: int) -> None:
        if task == 1 and report.step == 2:
            (folder / "stop").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        with patch.context() as stopping, pytest.raises(Stopped):
            stopping.setattr(Reporter, "estimate", estimate)
            run(config)
        return folder, run(config)


def losses_of(results: RunResults) -> list[float]:
    """Returns the loss of every step of a run."""
    return [loss for of_task in results.losses for loss in of_task.loss]


def test_weights_and_biases(tracked: tuple[Path, RunResults]) -> None:
    folder, results = tracked
    (first, stopped), (second, resumed) = wandb_records(folder)
    assert first == second == json.loads((folder / "tracking.json").read_text())["wandb"]
    losses = {row["step"]: row["train/loss"] for row in stopped + resumed if "train/loss" in row}
    assert losses == dict(enumerate(losses_of(results), 1))
    of_tasks = {row["task"]: row for row in resumed if "score/FOMC" in row}
    assert of_tasks[2]["score/FOMC"] == pytest.approx(results.matrix[2][0])


def test_mlflow(tracked: tuple[Path, RunResults]) -> None:
    folder, results = tracked
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert found.info.status == "FINISHED"
    assert found.data.params["adapter.rank"] == str(results.config["adapter"]["rank"])
    losses = {each.step: each.value for each in client.get_metric_history(found.info.run_id, "train/loss")}
    assert losses == dict(enumerate(losses_of(results), 1))


def test_no_tracking_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    run(config_of(tiny_folder, tmp_path / "run", tracking=[], order=["FOMC"]))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"tensorboard", "tracking.json", "wandb", "mlflow.db"}


def test_what_does_not_start_is_one_line(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tiny_folder, tmp_path / "run", tracking=["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://of-the-kind")
    with pytest.raises(UserError, match="tracking: mlflow does not start: "):
        run(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking: mlflow is not installed; pip install 'codyra_llm\[track\]'"):
        dry_run(config)


def test_a_service_that_is_lost_ends_no_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import MLflowTracker

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(MLflowTracker, "log", lost)
    run(config_of(tiny_folder, tmp_path / "run", tracking=["mlflow"], order=["FOMC"]))
    assert "no more tracking by mlflow: no answer" in (tmp_path / "run" / "train.log").read_text()
