"""Memory does not grow with the model: 3 GB of weights are rebuilt within 2 GB, all libraries included."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from codyra_llm.ledger.entry import write_entry
from codyra_llm.ledger.ledger import BaseModel, Entry, Ledger, write_ledger
from codyra_llm.models.identity import model_hash
from codyra_llm.models.load import skeleton
from codyra_llm.models.shards import ShardReader, checkpoint_tensors, write_shards
from tests.conftest import REPOSITORY

SHARD = 500_000_000  # bytes
MEASURED = """
import re, runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script)["materialize"]()
# not getrusage, whose peak begins with that of the process that started this one
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


def test_three_gigabytes_are_rebuilt_within_two(
    tokenizers_by_family: dict[str, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("needs 8 GB of disk")
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=32, num_key_value_heads=8
    )
    base, ledger, output = tmp_path / "base", tmp_path / "ledger", tmp_path / "model"
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(base)
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(base)
    layout = checkpoint_tensors(skeleton(config, dtype=torch.bfloat16))
    size = sum(weight.nbytes for weight in layout.values())
    assert size > 2.8e9

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        values = torch.randn(2**20).bfloat16()
        for name, like in layout.items():
            yield name, values.repeat(-(-like.numel() // 2**20))[: like.numel()].view(like.shape)

    write_shards(base, layout, weights(), SHARD)
    name = "model.layers.31.mlp.down_proj"
    B, A = torch.randn(2048, 16) * 0.01, torch.randn(16, 5632)
    every = {n.removesuffix(".weight"): (B[: w.shape[0]].clone(), A[:, : w.shape[1]].clone())
             for n, w in layout.items() if "down_proj" in n}  # fmt: skip
    files = write_entry(ledger / "01-task", every, "base")
    entry = Entry("01-task", "task", files, len(every), 16 * len(every), 1.0)
    write_ledger(ledger, Ledger(BaseModel(str(base), model_hash(str(base)), "bfloat16"), (entry,)))

    script = REPOSITORY / "scripts" / "materialize.py"
    command = [sys.executable, "-c", MEASURED, str(script), "--ledger", str(ledger), "--output_dir", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    peak = int(done.stdout.splitlines()[-1])
    print(f"{size / 1e9:.2f} GB of weights, peak {peak / 1e9:.2f} GB")
    reader = ShardReader(sorted(output.glob("*.safetensors")))
    assert {key: shape for key, shape in reader.shapes.items()} == {key: weight.shape for key, weight in layout.items()}
    found, original = torch.empty(2048 * 5632), torch.empty(2048 * 5632)
    reader.read(f"{name}.weight", found, 0)
    ShardReader(sorted(base.glob("*.safetensors"))).read(f"{name}.weight", original, 0)
    assert torch.equal(found, (original + (B @ A).flatten()).bfloat16().float())
    shutil.rmtree(base)
    shutil.rmtree(output)
    assert peak < 2e9, "with all libraries; a shard of the base has 0.5 GB, the model 3"
