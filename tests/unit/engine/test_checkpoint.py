"""Checkpoints on disk: the newest complete one is found, and the files that it depends on are checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from codyra_llm.engine.checkpoint import KEPT, Checkpoints, Progress
from codyra_llm.errors import UserError
from codyra_llm.files import sha256


def progress(step: int) -> Progress:
    return Progress(1, "train", step, step, ledger={}, results={"seconds": 1.5})


@pytest.fixture
def written(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "this run")
    (tmp_path / "entry").write_text("update")
    rests_on = {"entry": sha256(tmp_path / "entry")}
    for step in (1, 2, 3):
        checkpoints.write(progress(step), {"A": torch.full((2,), float(step))}, rests_on)
    return Checkpoints(tmp_path / "checkpoints", "this run")


def test_the_newest_is_found_and_the_last_are_kept(written: Checkpoints) -> None:
    found, problems = written.latest()
    assert found and not problems
    assert found.progress.step == 3 and found.tensors["A"].tolist() == [3.0, 3.0]
    assert sorted(path.name for path in written.folder.iterdir()) == ["00000002", "00000003"] and KEPT == 2


def test_a_damaged_one_is_skipped_and_named(written: Checkpoints) -> None:
    (written.folder / "00000003" / "state.safetensors").write_bytes(b"x")
    found, problems = written.latest()
    assert found and found.progress.step == 2
    assert problems == [f"{written.folder}/00000003/state.safetensors is damaged"]
    written.write(progress(4), {}, {})
    assert sorted(path.name for path in written.folder.iterdir()) == ["00000002", "00000004"]


def test_a_file_that_all_rest_on(written: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "entry").write_text("another")
    with pytest.raises(UserError, match=r"no checkpoint can be used: .*entry is damaged; .*entry is damaged"):
        written.latest()


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/passwd"])
def test_a_name_that_leads_elsewhere(written: Checkpoints, name: str) -> None:
    for folder in written.folder.iterdir():
        sums = json.loads((folder / "checksums.json").read_text())
        sums["sha256"][name] = "0" * 64
        (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=r"checksums.json is damaged"):
        written.latest()


def test_what_is_half_written_is_no_checkpoint(written: Checkpoints) -> None:
    shutil.copytree(written.folder / "00000003", written.folder / "00000004.tmp")
    found, problems = written.latest()
    assert found and found.progress.step == 3 and not problems


def test_another_run(written: Checkpoints) -> None:
    with pytest.raises(UserError, match=r"belongs to another run .*; `--resume never` starts over"):
        Checkpoints(written.folder, "another").latest()


def test_none_at_all(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints", "this run").latest() == (None, [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 2}, r"written by another version of codyra_llm \(schema_version 2\)"),
        ({"phase": "dream"}, "is damaged, or was written by another version"),
        ({"step": -1}, "is damaged, or was written by another version"),
        ({"step": "1"}, "is damaged, or was written by another version"),
        ({"results": None}, "is damaged, or was written by another version"),
    ],
)
def test_progress_that_is_sealed_and_makes_no_sense(written: Checkpoints, change: dict[str, Any], problem: str) -> None:
    for folder in written.folder.iterdir():
        path = folder / "progress.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        sums = json.loads((folder / "checksums.json").read_text())
        sums["sha256"]["progress.json"] = sha256(path)
        (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=problem):
        written.latest()


def test_progress_of_an_earlier_version_has_nothing_kept(written: Checkpoints) -> None:
    folder = max(written.folder.iterdir())
    content = json.loads((folder / "progress.json").read_text())
    del content["kept"], content["schema_version"]
    (folder / "progress.json").write_text(json.dumps(content))
    sums = json.loads((folder / "checksums.json").read_text())
    sums["sha256"]["progress.json"] = sha256(folder / "progress.json")
    (folder / "checksums.json").write_text(json.dumps(sums))
    found, problems = written.latest()
    assert found and not problems and found.progress.kept == {} and found.progress.step == 3
