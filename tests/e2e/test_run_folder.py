"""The run folder: one run at a time, a start killed at its first write, missing files, names, links."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError
from codyra_llm.files import sha256
from codyra_llm.locks import claim
from codyra_llm.report.folder import RunFolder
from codyra_llm.results.schema import read_results
from tests.comparison import assert_same_files
from tests.conftest import REPOSITORY
from tests.e2e.test_run import tiny_config

SHORT = {"order": ["FOMC"], "train.num_train_epochs": 1, "data.max_train_examples": 16, "data.max_test_examples": 2}


def config_of(model: Path, output: Path, **overrides: object) -> RunConfig:
    return tiny_config(model, output, **{**SHORT, "evaluate.tasks": "last", **overrides})


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("folder") / "run"
    run(config_of(tiny_folder, output))
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_that_another_process_uses(tiny_folder: Path, copy: Path) -> None:
    held = claim(copy)
    program = "from tests.e2e.test_run_folder import config_of; from codyra_llm import run; from pathlib import Path\n"
    program += "from codyra_llm.command import main; import sys\n"
    program += "main(lambda: run(config_of(Path(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3])) and None)"
    for resume in ("auto", "never"):
        command = [sys.executable, "-c", program, str(tiny_folder), str(copy), resume]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"error: {copy}: is in use by process {os.getpid()} on " in done.stderr
    held.release()
    assert (copy / "ledger" / "01-FOMC").is_dir() and (copy / "model").is_dir()


@pytest.mark.parametrize("left", [[], ["config.yaml.tmp"], ["stop"], ["predictions/"], [".lock", "stopped"]])
def test_a_start_that_was_killed_before_it_wrote_anything(left: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    RunFolder(config_of(tiny_folder, folder)).unlock()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files that are not a run"):
        RunFolder(config_of(tiny_folder, folder))


def test_the_configuration_is_written_first(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    folder = RunFolder(config_of(tiny_folder, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr("codyra_llm.report.folder.to_yaml", kill)
        with pytest.raises(Killed):
            folder.open()
    folder.unlock()
    RunFolder(config_of(tiny_folder, tmp_path / "run")).open()
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("gone", [["model"], ["results.json"], ["model", "results.json"], ["model/config.json"]])
def test_what_a_finished_run_lacks_is_made_again(
    gone: list[str], tiny_folder: Path, finished: Path, copy: Path
) -> None:
    for name in gone:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    results = run(config_of(tiny_folder, copy))
    assert_same_files(copy / "model", finished / "model")
    kept = read_results(finished)
    assert results.matrix == kept.matrix and results.losses == kept.losses
    assert read_results(copy).matrix == kept.matrix


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"phase": "distil"}, {"task": "1"}, {"step": -1}, {"results": 3}]
)
def test_a_checkpoint_of_another_version(change: dict[str, Any], tiny_folder: Path, copy: Path) -> None:
    for folder in (copy / "checkpoints").iterdir():
        progress = json.loads((folder / "progress.json").read_text())
        (folder / "progress.json").write_text(json.dumps({**progress, **change}))
        sums = json.loads((folder / "checksums.json").read_text())
        sums["sha256"]["progress.json"] = sha256(folder / "progress.json")
        (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=r"no checkpoint can be used: .*(another version|damaged)"):
        run(config_of(tiny_folder, copy))


def test_names_that_are_no_checkpoint_are_passed_over(tiny_folder: Path, copy: Path) -> None:
    for name in ("²", "00000009.tmp", "notes"):
        (copy / "checkpoints" / name).mkdir()
    assert run(config_of(tiny_folder, copy)).matrix


def test_links_in_the_place_of_contents_are_taken_away_alone(tiny_folder: Path, copy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "big"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    for name in ("model", "tensorboard"):
        shutil.rmtree(copy / name, ignore_errors=True)
        (copy / name).symlink_to(elsewhere)
    run(config_of(tiny_folder, copy, resume="never"))
    assert (copy / "model" / "model.safetensors").exists() and not (copy / "model").is_symlink()
    assert (elsewhere / "file").read_text() == "kept"


def test_a_task_may_be_named_as_a_column(tiny_folder: Path, tmp_path: Path) -> None:
    folder = RunFolder(config_of(tiny_folder, tmp_path / "run"))
    folder.open()
    for task in ("task", "other", "task"):
        folder.append_ranks(task, [], {})
    (header,) = list(csv.reader((tmp_path / "run" / "ranks.csv").open()))
    assert header[:2] == ["task", "module"]
    folder.unlock()
