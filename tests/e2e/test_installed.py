"""An installed wheel, without the clone: the command, and the data files that it needs."""

import csv
import email
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pyarrow
import pyarrow.parquet
import pytest
from nbclient import NotebookClient
from transformers import AutoTokenizer

from tests.chat_templates import LLAMA_2
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codyra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an installed wheel, in an environment with the libraries of this one but without the clone."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building writes into the source folder
    for part in ("codyra_llm", "tasks", "configs", "ds_configs", "scripts/slurm"):
        shutil.copytree(REPOSITORY / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
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


@pytest.fixture(scope="module")
def chat_model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    shutil.copytree(tiny_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = LLAMA_2
    tokenizer.save_pretrained(folder)
    return folder


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
    assert (Path(call(codyra, "path", "slurm", folder=tmp_path).strip()) / "train_trace.sbatch").is_file()
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
    (tmp_path / "run" / "report.html").unlink()  # its templates are in the wheel
    said = call(codyra, "report", "run", folder=tmp_path)
    assert (tmp_path / said.strip()).stat().st_size > 10_000


def test_what_the_wheel_says_of_itself(codyra: Path) -> None:
    (folder,) = codyra.parents[1].glob("lib/python*/site-packages/codyra_llm-*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text())
    always = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert sorted(each.split(">")[0] for each in always) == ["numpy", "safetensors", "torch"]
    assert {"all", "train", "general", "quantized", "track", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in next(folder.rglob("LICENSE")).read_text()
    assert (folder.parent / "codyra_llm" / "py.typed").exists()


def test_the_adapter_needs_nothing_but_torch(codyra: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "deepspeed", "datasets", "pydantic", "yaml", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch
import codyra_llm

model = torch.nn.Sequential()
model.add_module("q_proj", torch.nn.Linear(16, 16))
config = codyra_llm.CoDyRAConfig(rank=4, target_modules=("q_proj",))
print(codyra_llm.inject(model, config), codyra_llm.__version__)
sys.argv = ["codyra", "train"]
from codyra_llm.cli.__main__ import run
run()
"""
    )
    done = subprocess.run([codyra.with_name("python"), "alone.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split()[0] == "['q_proj']"
    assert done.returncode == 2
    assert done.stderr.strip() == "error: pydantic is not installed; pip install 'codyra_llm[train]'"


def test_from_tables_to_a_model_that_talks(codyra: Path, chat_model: Path, tmp_path: Path) -> None:
    """Uses only the command, on a CSV file, conversations and a Parquet file of raw text."""
    with (tmp_path / "tickets.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["question", "answer"])
        table.writerows([f"Reset device {n}?", f"Hold it for {n} seconds."] for n in range(20))
    talks = [
        {"messages": [{"role": "user", "content": f"After {n}?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    texts = [{"text": f"On day {n} it rained, and the river rose by {n} feet. " * 3} for n in range(20)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "news.parquet")

    data = ("--data", "tickets.csv", "--data", "talks=talks.jsonl", "--data", "news=news.parquet")
    said = call(codyra, "init", "mine", *data, "--model", chat_model, folder=tmp_path)
    assert "talks: 18 rows to learn, 2 to score" in said
    refused = subprocess.run([codyra, "init", "mine", *data], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "mine: already exists" in refused.stderr

    config = ("--config", "mine/config.yaml")
    assert ">>After" not in call(codyra, "train", *config, "--dry_run", folder=tmp_path)
    assert json.loads(call(codyra, "plan", *config, "--gpus", 2, "--gpu-memory", "24GiB", "--json", folder=tmp_path))
    how = ("--adapter.rank", 4, "--evaluate.max_new_tokens", 2, "--train.num_train_epochs", 2)
    printed = call(codyra, "plan", *config, *how, "--gpus", 2, "--gpu-memory", "24GiB", folder=tmp_path)
    command = shlex.split(printed.splitlines()[-1])
    assert command[0] == "codyra"
    call(codyra, *command[1:], folder=tmp_path)  # the planned command runs as printed
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["world_size"] == 2
    templates = [task["chat_template"] and task["chat_template"]["setting"] for task in results["data"]["tasks"]]
    assert templates == ["auto", "auto", None]

    model = tmp_path / "runs" / "mine" / "model"
    scored = ("--model.name_or_path", model, "--output_dir", "scores", "--evaluate.max_new_tokens", 2)
    call(codyra, "evaluate", *config, *scored, folder=tmp_path)
    found = json.loads((tmp_path / "scores" / "results.json").read_text())["scores"]["lenient"]
    assert list(found.values()) == pytest.approx(results["matrix"][-1], abs=1e-3)

    talk = [codyra, "chat", model, "--max_new_tokens", "3"]
    assert subprocess.run(talk, input="After 3?", cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    train = call(codyra, "path", "train", folder=tmp_path).split()
    assert Path(train[0]).exists()
    assert "usage: codyra train" in call(
        codyra.with_name("python"), *train, "--local_rank=0", "--help", folder=tmp_path
    )


def test_the_example(codyra: Path, chat_model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{codyra.parent}:{os.environ['PATH']}", "MODEL": str(chat_model)}
    how = ["--adapter.rank", "4", "--evaluate.max_new_tokens", "2", "--evaluate.tasks", "last"]
    script = REPOSITORY / "examples" / "tickets.sh"
    done = subprocess.run(["bash", script, *how], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "50 rows to learn, 6 to score" in done.stdout
    assert (tmp_path / "runs" / "tickets" / "model" / "config.json").exists()


def test_the_notebook(codyra: Path, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs its cells in a Jupyter kernel, with a tiny model."""
    for name in ("tickets.ipynb", "tickets.csv"):
        shutil.copy(REPOSITORY / "examples" / name, tmp_path)
    monkeypatch.setenv("PATH", f"{codyra.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MODEL", str(chat_model))
    monkeypatch.setenv("OPTIONS", "--adapter.rank 4 --evaluate.max_new_tokens 2")
    notebook = nbformat.read(tmp_path / "tickets.ipynb", as_version=4)
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [str(each) for cell in done.cells for each in cell.get("outputs", [])]
    assert any("50 rows to learn, 6 to score" in output for output in outputs)
    assert any("image/png" in output for output in outputs)
