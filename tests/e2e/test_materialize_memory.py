"""Memory does not grow with the model: 3 GB of weights are rebuilt within 2 GB, including all libraries."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerFast

from codyra_llm.ledger.entry import write_entry
from codyra_llm.ledger.ledger import BaseModel, Entry, Ledger, write_ledger
from codyra_llm.models.fingerprint import model_hash
from codyra_llm.models.load import meta_model
from codyra_llm.models.shards import ShardReader, checkpoint_tensors, write_shards
from tests.conftest import REPOSITORY

SHARD = 500_000_000  # bytes
MEASURED = r"""
import re, runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script)["command"]()
print(1024 * int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]))  # ru_maxrss knows the parent's too
"""


@pytest.fixture(scope="module")
def base(
    tokenizers_by_family: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Folder of a model of 3 GB in several files."""
    folder = tmp_path_factory.mktemp("large") / "base"
    if shutil.disk_usage(folder.parent).free < 8e9:
        pytest.skip("needs 8 GB of disk")
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=32, num_key_value_heads=8
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(folder)
    layout = layout_of(folder)
    assert size_of(layout) > 2.8e9

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        values = torch.randn(2**20).bfloat16()
        for name, like in layout.items():
            yield name, values.repeat(-(-like.numel() // 2**20))[: like.numel()].view(like.shape)

    write_shards(folder, layout, weights(), SHARD)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def update() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns B and A of a random update of a down projection."""
    return torch.randn(2048, 16) * 0.01, torch.randn(16, 5632)


@pytest.fixture
def ledger(base: Path, update: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> Path:
    every = {name.removesuffix(".weight"): update for name in layout_of(base) if "down_proj" in name}
    files = write_entry(tmp_path / "ledger" / "01-task", {n: (B.clone(), A.clone()) for n, (B, A) in every.items()}, "")
    entry = Entry("01-task", "task", files, len(every), 16 * len(every), 1.0)
    model = BaseModel(str(base), model_hash(str(base)), "bfloat16")
    write_ledger(tmp_path / "ledger", Ledger(model, (entry,)))
    return tmp_path / "ledger"


def layout_of(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint_tensors(meta_model(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16))


def size_of(layout: dict[str, torch.Tensor]) -> int:
    return sum(weight.nbytes for weight in layout.values())


def peak_of(ledger: Path, output: Path, *options: str) -> int:
    """Runs materialize.py; returns its peak memory in bytes."""
    script = REPOSITORY / "scripts" / "materialize.py"
    command = [sys.executable, "-c", MEASURED, str(script), "--ledger", str(ledger), "--output_dir", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return int(done.stdout.splitlines()[-1])


def test_three_gigabytes_are_rebuilt_within_two(
    base: Path, ledger: Path, update: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    (B, A), layout, output = update, layout_of(base), tmp_path / "model"
    peak = peak_of(ledger, output)
    print(f"{size_of(layout) / 1e9:.2f} GB of weights, peak {peak / 1e9:.2f} GB")
    reader = ShardReader(sorted(output.glob("*.safetensors")))
    assert {key: shape for key, shape in reader.shapes.items()} == {key: weight.shape for key, weight in layout.items()}
    name = "model.layers.31.mlp.down_proj.weight"
    found, original = torch.empty(2048 * 5632), torch.empty(2048 * 5632)
    reader.read(name, found, 0)
    ShardReader(sorted(base.glob("*.safetensors"))).read(name, original, 0)
    assert torch.equal(found, (original + (B @ A).flatten()).bfloat16().float())
    shutil.rmtree(output)
    assert peak < 2e9, "with all libraries; a shard of the base has 0.5 GB, the model 3"


@pytest.mark.parametrize(("quantization", "size"), [("int8", 1.8e9)])
def test_they_are_quantized_within_two(
    base: Path, ledger: Path, tmp_path: Path, quantization: str, size: float
) -> None:
    output = tmp_path / "model"
    peak = peak_of(ledger, output, "--quantize", quantization)
    written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{quantization}: {written / 1e9:.2f} GB of weights, peak {peak / 1e9:.2f} GB")
    shutil.rmtree(output)
    assert written < size
    assert peak < 2e9
