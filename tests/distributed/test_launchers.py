"""The command under each launcher: the same result, and for bad input one line and status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.comparison import assert_same_result
from tests.conftest import REPOSITORY
from tests.distributed.forked import free_port

BIN = Path(sys.executable).parent
FREE_PORT = "a free port"
LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", FREE_PORT],
}


def launch(launcher: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs train_trace under a launcher."""
    return subprocess.run(
        [
            *(free_port() if word == FREE_PORT else word for word in LAUNCHERS[launcher]),
            "scripts/train_trace.py",
            "--config",
            "configs/smoke.yaml",
            *arguments,
        ],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """results.json of a run without a launcher."""
    return results(tiny_folder, tmp_path_factory.mktemp("python") / "run", "python")


def results(model: Path, output: Path, launcher: str, *arguments: str) -> dict[str, Any]:
    """Runs the smoke configuration on the tiny model; returns its results.json."""
    common = ["--model.name_or_path", str(model), "--output_dir", str(output), "--adapter.rank", "4"]
    done = launch(launcher, *common, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "after FOMC" in done.stdout + done.stderr
    return json.loads((output / "results.json").read_text())


@pytest.mark.parametrize(
    ("launcher", "arguments"), [("deepspeed", ["--deepspeed", "ds_configs/zero3.json"]), ("torchrun", [])]
)
def test_two_ranks_give_what_one_gives(
    alone: dict[str, Any], tiny_folder: Path, tmp_path: Path, launcher: str, arguments: list[str]
) -> None:
    two = results(tiny_folder, tmp_path / "run", launcher, *arguments)
    assert (alone["world_size"], two["world_size"]) == (1, 2)
    assert_same_result(tmp_path / "run", Path(alone["config"]["output_dir"]))


def test_plain_python_runs_zero_3_as_well(alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    partitioned = results(tiny_folder, tmp_path / "run", "python", "--deepspeed", "ds_configs/zero3.json")
    assert partitioned["matrix"] == alone["matrix"]


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_bad_input_is_one_line_and_status_2(launcher: str, tmp_path: Path) -> None:
    done = launch(launcher, "--data_dir", "nowhere", "--output_dir", str(tmp_path / "run"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: nowhere: no such data folder; data_dir holds <task>/train.json and <task>/test.json"]
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()
