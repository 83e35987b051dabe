"""Errors of ledger commands, each in one line: damaged files, entries of another shape, another base, a full disk."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from codyra_llm import run
from tests.e2e.conftest import Command
from tests.e2e.test_ledger import config_of
from tests.models import tiny_model


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two tasks."""
    output = tmp_path_factory.mktemp("ledger") / "run"
    run(config_of(tiny_folder, output))
    return output


@pytest.fixture
def ledger(finished: Path, tmp_path: Path) -> Path:
    """Copy of a ledger, which tests may damage."""
    shutil.copytree(finished / "ledger", tmp_path / "ledger")
    return tmp_path / "ledger"


def other_base(ledger: Path) -> list[Any]:
    tiny_model(seed=9).save_pretrained(ledger / "other")
    base = json.loads((ledger / "ledger.json").read_text())["base_model"]["name"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(base) / name, ledger / "other" / name)
    return ["--base", ledger / "other"]


def remove(ledger: Path) -> None:
    (ledger / "02-NumGLUE-cm" / "adapter_model.safetensors").unlink()


def flip(ledger: Path) -> None:
    file = ledger / "01-FOMC" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def reorder(ledger: Path) -> None:
    content = json.loads((ledger / "ledger.json").read_text())
    (ledger / "ledger.json").write_text(json.dumps({**content, "entries": content["entries"][::-1]}))


def drop_norm(ledger: Path) -> None:
    content = json.loads((ledger / "ledger.json").read_text())
    del content["entries"][0]["norm"]
    (ledger / "ledger.json").write_text(json.dumps(content))


def no_ledger(ledger: Path) -> None:
    (ledger / "ledger.json").unlink()


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (other_base, [], r"the ledger was made for .* has other weights \([0-9a-f]{12}\)"),
        (remove, [], r"02-NumGLUE-cm/adapter_model.safetensors cannot be read: No such file"),
        (flip, [], r"01-FOMC/adapter_model.safetensors is damaged"),
        (reorder, [], r"ledger.json: its entries are not those that were written"),
        (drop_norm, [], r"ledger.json: entries.0.norm: Field required"),
        (no_ledger, [], r"ledger.json: No such file or directory; name the folder `ledger` of a run"),
        (None, ["--without", "FMOC"], r'no entry is "FMOC"; the ledger has 01-FOMC, 02-NumGLUE-cm'),
        (None, ["--upto", "3"], r"there is no entry 3; the ledger has 2"),
        (None, ["--scale", "FOMC"], r"--scale FOMC: write TASK=SHARE"),
        (None, ["--scale", "FOMC=nan"], r"the share of FOMC is nan"),
        (None, ["--upto", "1", "--without", "NumGLUE-cm"], r"02-NumGLUE-cm comes after the entries that are wanted"),
        (None, ["--base", "nothing.gguf"], r"nothing.gguf: no such file"),
        (None, ["--dtype", "int3"], r"invalid choice: 'int3'"),
        (None, ["--quantize", "int3"], r"invalid choice: 'int3'"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    ledger: Path,
    tmp_path: Path,
    refused: Command,
    damage: Callable[..., Any] | None,
    arguments: list[Any],
    message: str,
) -> None:
    more = damage(ledger) if damage else None
    output = tmp_path / "model"
    line = refused("materialize.py", "--ledger", ledger, "--output_dir", output, *arguments, *(more or []))
    assert re.search(message, line), line
    assert not list(tmp_path.glob("model*"))


def test_entries_of_another_shape(ledger: Path, tmp_path: Path, refused: Command, tiny_folder: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    (tmp_path / "adapter").mkdir()
    LoraConfig(r=2, target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    file, before = tmp_path / "adapter" / "adapter_model.safetensors", (ledger / "ledger.json").read_bytes()
    append = ("ledger.py", "append", ledger, "--adapter", tmp_path / "adapter", "--task", "mine")
    A, B = torch.ones(2, 33), torch.ones(32, 2)
    for tensors, message in [
        ({f"{key}A.weight": A, f"{key}B.weight": B}, r"has an update of [32, 33] for model.layers.0.self_attn.q_proj"),
        ({f"{key}A.weight": A, f"{key}B.weight": B[:, :1].clone()}, "lora_A [2, 33] and lora_B [32, 1] do not fit"),
        ({f"{key}A.weight": A}, "do not fit"),
        ({f"{key}A.weight": A * torch.nan, f"{key}B.weight": B}, "holds values that are not finite"),
        ({f"{key}magnitude": A}, "lora_magnitude is not part of an update"),
        ({f"{key.replace('q_proj', 'z_proj')}{part}.weight": value for part, value in (("A", A), ("B", B))},
         "the base model has no such projection"),
    ]:  # fmt: skip
        save_file(tensors, file)
        assert message in refused(*append)
    settings: list[tuple[dict[str, Any], str]] = [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ]
    for setting, message in settings:
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, **setting}))
        assert f"{message}: the adapter is more than an update" in refused(*append)
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert "names a folder" in refused(*append[:-1], "../mine")
    assert (ledger / "ledger.json").read_bytes() == before
    assert sorted(path.name for path in ledger.iterdir()) == ["01-FOMC", "02-NumGLUE-cm", "ledger.json"]
    assert "must be at least that" in refused(
        "ledger.py", "export", ledger, "--output_dir", tmp_path / "sum", "--rank", 1
    )
    assert not (tmp_path / "sum").exists()


def test_a_run_cannot_extend_a_ledger_of_another_model(ledger: Path, tmp_path: Path, refused: Command) -> None:
    _, other = other_base(ledger)
    line = refused(
        *(
            "train_trace.py",
            "--config",
            "configs/quickstart.yaml",
            "--model.name_or_path",
            other,
            "--output_dir",
            tmp_path / "run",
            "--order",
            "FOMC",
        ),
        *("--extend", ledger, "--adapter.rank", 4),
    )
    assert "has other weights" in line
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing_behind(ledger: Path, tmp_path: Path, refused: Command, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(8 * 2**20 - 200_000))
    for quantize in ([], ["--quantize", "int8"]):
        line = refused("materialize.py", "--ledger", ledger, "--output_dir", small_disk / "model", *quantize)
        assert "model: the model cannot be saved: No space left on device" in line
    line = refused("ledger.py", "export", ledger, "--output_dir", small_disk / "adapter", "--rank", 600)
    assert "adapter: cannot be written" in line
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
