"""An installed wheel, without the clone: the command, and the files that it needs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codyra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an installed wheel, in an environment that has this one's libraries, but not the clone."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building leaves its marks in the sources
    for part in ("codyra_llm", "tasks", "configs", "ds_configs"):
        shutil.copytree(REPOSITORY / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / file, source)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel: list[str | Path] = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *wheel], check=True, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    libraries = folder / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (libraries / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (found,) = folder.glob("*.whl")
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--ignore-installed", found], check=True)
    return folder / "venv" / "bin" / "codyra"


def call(codyra: Path, *arguments: object, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(codyra), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_not_the_clone(codyra: Path, tmp_path: Path) -> None:
    python = codyra.with_name("python")
    found = call(python, "-c", "import codyra_llm; print(codyra_llm.__file__)", folder=tmp_path)
    assert Path(found.strip()).is_relative_to(codyra.parents[1])


def test_commands_find_what_is_shipped(codyra: Path, tmp_path: Path) -> None:
    assert "materialize" in call(codyra, folder=tmp_path)
    rows = {"prompt": "", "prediction": "dovish", "reference": "dovish"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(rows) + "\n")
    assert json.loads(call(codyra, "score", "--task", "FOMC", "predictions.jsonl", folder=tmp_path))["n"] == 1
    plan = ("plan", "--config", "configs/smoke.yaml", "--gpus", 2, "--gpu-memory", "24GiB", "--json")
    assert json.loads(call(codyra, *plan, folder=tmp_path))


def test_a_run_of_the_sample(codyra: Path, tiny_folder: Path, tmp_path: Path) -> None:
    settings = {
        "model.name_or_path": tiny_folder,
        "adapter.rank": 4,
        "order": "FOMC",
        "deepspeed": "ds_configs/zero2.json",
        "data.max_train_examples": 16,
        "data.max_test_examples": 2,
        "evaluate.tasks": "last",
        "evaluate.max_new_tokens": 2,
        "output_dir": tmp_path / "run",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    call(codyra, "train", "--config", "configs/smoke.yaml", *options, folder=tmp_path)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
