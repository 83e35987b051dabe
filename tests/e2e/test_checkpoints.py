"""Damaged, missing and other runs' checkpoints; a full disk; a finished run."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from codyra_llm import run
from codyra_llm.config import RunConfig, load_config
from codyra_llm.engine.checkpoint import Checkpoints, Progress
from codyra_llm.errors import Stopped, UserError
from codyra_llm.generation.generate import Answered
from codyra_llm.report.folder import RunFolder
from codyra_llm.results.schema import RunResults
from tests.conftest import REPOSITORY
from tests.e2e.test_run import tiny_config


def config_of(model: Path, output: Path, **overrides: object) -> RunConfig:
    return tiny_config(model, output, **{"order": ["FOMC", "NumGLUE-cm"], "train.checkpoint_every": 2, **overrides})


def stop_in_task_2(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until it stops some steps into the second task."""
    from codyra_llm.report.reporter import Reporter

    def step(self: Reporter, report: object, global_step: int, progress: object) -> None:
        if global_step == 23:
            (Path(config.output_dir) / "stop").touch()

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Reporter, "step", step)
        run(config)


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run(config_of(tiny_folder, tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def stopped(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, list[Path]]:
    """A run that was stopped in its second task, and its two checkpoints, the older first."""
    config = config_of(tiny_folder, tmp_path / "run")
    stop_in_task_2(config, monkeypatch)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [(path / "state.safetensors").exists() for path in checkpoints] == [True, True]
    return config, checkpoints


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "state.safetensors", 1000)


def flip(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "progress.json").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "progress.json").write_bytes(content)


def remove(checkpoint: Path) -> None:
    (checkpoint / "state.safetensors").unlink()


def empty_sums(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").write_text("")


def foreign(checkpoint: Path) -> None:
    sums = json.loads((checkpoint / "checksums.json").read_text())
    (checkpoint / "checksums.json").write_text(json.dumps({**sums, "run": "another"}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (truncate, "state.safetensors is damaged"),
        (flip, "progress.json is damaged"),
        (remove, "state.safetensors is missing"),
        (empty_sums, "checksums.json is damaged"),
        (foreign, "belongs to another run"),
    ],
)
def test_a_bad_checkpoint_is_named_and_skipped(
    stopped: tuple[RunConfig, list[Path]], finished: RunResults, damage: object, problem: str
) -> None:
    config, (_, newer) = stopped
    damage(newer)
    results = run(config)
    log = (Path(config.output_dir) / "train.log").read_text()
    assert f"skipped a checkpoint: {newer}" in log
    assert problem in log
    assert results.losses == finished.losses
    assert results.matrix == finished.matrix
    (session,) = results.sessions
    assert (session.task, session.phase) == (2, "train")
    assert session.step > 0


def test_8_bit_moments_are_taken_up(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train.adam_bits": 8, "deepspeed": "ds_configs/zero2.json", "evaluate.tasks": "last"}
    whole = run(config_of(tiny_folder, tmp_path / "whole", **settings))
    config = config_of(tiny_folder, tmp_path / "stopped", **settings)
    stop_in_task_2(config, monkeypatch)
    results = run(config)
    for one, other in zip(results.losses, whole.losses, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.02)


def test_no_checkpoint_left(stopped: tuple[RunConfig, list[Path]], finished: RunResults) -> None:
    config, (older, newer) = stopped
    truncate(newer)
    empty_sums(older)
    with pytest.raises(UserError) as error:
        run(config)
    assert str(error.value).startswith("no checkpoint can be used: ")
    assert str(newer) in str(error.value)
    assert str(older) in str(error.value)
    assert "`--resume never` starts over" in str(error.value)
    overrides = {"resume": "never"}
    assert run(load_config(Path(config.output_dir) / "config.yaml", overrides)).losses == finished.losses


def test_a_damaged_ledger_entry_is_seen(stopped: tuple[RunConfig, list[Path]]) -> None:
    config, _ = stopped
    weights = Path(config.output_dir) / "ledger" / "01-FOMC" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(UserError, match=r"ledger/01-FOMC/adapter_model\.safetensors is damaged"):
        run(config)


def test_other_data_is_another_run(stopped: tuple[RunConfig, list[Path]], tmp_path: Path) -> None:
    config, _ = stopped
    data = tmp_path / "data"
    shutil.copytree("tasks/trace/sample", data)
    changed = load_config(Path(config.output_dir) / "config.yaml", {"data_dir": str(data)})
    with pytest.raises(
        UserError, match=r"holds a run with another configuration \(data_dir tasks/trace/sample, now .*data\); give its"
    ):
        run(changed)


def test_a_finished_run_is_left_as_it_is(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tiny_folder, tmp_path / "run", order=["FOMC"])
    first = run(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(config).losses == first.losses
    assert "this run is finished" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tiny_folder: Path, small_disk: Path, finished: RunResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_folder, small_disk / "run")
    stop_in_task_2(config, monkeypatch)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 50_000))
    before = {path.name for path in (small_disk / "run" / "checkpoints").iterdir()}
    with pytest.raises(UserError, match=r"No space left on device.*the same command resumes from it"):
        run(config)
    assert {path.name for path in (small_disk / "run" / "checkpoints").iterdir()} == before
    (small_disk / "filler").unlink()
    results = run(config)
    assert results.losses == finished.losses
    assert results.matrix == finished.matrix


def test_answers_that_were_cut_off_while_being_written(tiny_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(config_of(tiny_folder, tmp_path / "run"))
    folder.open()
    folder.append_answers("0-base", {"3": Answered("three", 1, 0.5, True)})
    journal = tmp_path / "run" / "predictions" / "0-base.partial"
    for rest in (b'{"4": ["cut', b"\x00\x00\n"):
        with journal.open("ab") as stream:
            stream.write(rest)
        assert folder.read_answers("0-base") == {"3": Answered("three", 1, 0.5, True)}
    folder.append_answers("0-base", {"4": Answered("four", 2, 1.5, False)})
    assert folder.read_answers("0-base") == {"3": Answered("three", 1, 0.5, True), "4": Answered("four", 2, 1.5, False)}
    assert folder.read_answers("general-0-base") == {}  # reading another name does not remove these
    assert journal.exists()
    folder.drop_answers()
    assert not journal.exists()


def test_a_bad_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run")
    for number in range(2):
        checkpoints.write(Progress(number, "train", 0, 0, {}, {}), {}, {})
    empty_sums(tmp_path / "checkpoints" / "00000002")
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run")
    checkpoints.latest()
    checkpoints.write(Progress(2, "train", 0, 0, {}, {}), {}, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000003"]


def test_other_settings_of_a_task_are_another_run(
    stopped: tuple[RunConfig, list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, _ = stopped
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text((REPOSITORY / config.task_file).read_text())
    edited = dataclasses.replace(config, output_dir=str(tmp_path / "own"), task_file=str(tasks))
    stop_in_task_2(edited, monkeypatch)
    tasks.write_text(tasks.read_text().replace("max_new_tokens: ", "max_new_tokens: 1"))
    with pytest.raises(UserError, match="belongs to another run"):
        run(edited)
