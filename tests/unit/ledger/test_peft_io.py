"""Adapters in PEFT's format read as updates, compared with PEFT's own merge."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from codyra_llm.adapter.merging import apply_deltas
from codyra_llm.errors import UserError
from codyra_llm.ledger.entry import CONFIG, WEIGHTS, read_entry, write_entry
from codyra_llm.ledger.peft_io import read_adapter
from tests.models import tiny_model

SETTINGS: list[dict[str, Any]] = [
    {"r": 4},
    {"r": 4, "lora_alpha": 10, "use_rslora": True},
    {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*q_proj": 3, "v_proj": 9}},
]


@pytest.fixture(params=SETTINGS, ids=["plain", "rslora", "patterns"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Folder of a PEFT adapter, and the weights into which PEFT merges it."""
    config = LoraConfig(target_modules=["q_proj", "v_proj"], **request.param)
    model = get_peft_model(tiny_model(), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter", model.merge_and_unload().state_dict()


def test_it_merges_to_the_weights_that_peft_gives(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = trained
    model = tiny_model()
    apply_deltas(model, read_adapter(folder))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


def test_an_entry_is_an_adapter(trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, expected = trained
    updates = read_adapter(folder)
    write_entry(tmp_path / "01-task", updates, "base")
    again, entry = read_adapter(tmp_path / "01-task"), read_entry(tmp_path / "01-task")
    for name, factors in updates.items():
        assert all(torch.equal(*pair) for pair in zip(factors, again[name], strict=True))
        assert all(torch.equal(*pair) for pair in zip(factors, entry[name], strict=True))
    merged = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "01-task")).merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5)


def test_a_rank_for_servers_changes_no_update(trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    updates = read_adapter(trained[0])
    write_entry(tmp_path / "served", updates, "base", served_rank=8)
    for name, (B, A) in read_adapter(tmp_path / "served").items():
        assert A.shape[0] == B.shape[1] == 8
        torch.testing.assert_close(B @ A, updates[name][0] @ updates[name][1])
    with pytest.raises(UserError, match="the served rank 1 must be at least that"):
        write_entry(tmp_path / "small", updates, "base", served_rank=1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "IA3"}, "not a LoRA adapter"),
        ({"use_dora": True}, "use_dora: the adapter is more than an update"),
        ({"bias": "all"}, "bias: the adapter is more than an update"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa: the adapter is more than"),
        ({"lora_alpha": "much"}, "alpha or its pattern .* is unfit"),
        ({"alpha_pattern": {"(": 3}}, "alpha or its pattern .* is unfit"),
    ],
)
def test_what_is_no_update_is_refused(
    change: dict[str, Any], problem: str, trained: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, _ = trained
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=problem):
        read_adapter(folder)


def test_damaged_weights_are_named(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, _ = trained
    tensors = load_file(folder / WEIGHTS)
    key = min(key for key in tensors if "lora_A" in key)
    for changed, problem in [
        ({**tensors, key: torch.full_like(tensors[key], torch.nan)}, "values that are not finite"),
        ({**tensors, key: tensors[key][:, 0].contiguous()}, "do not fit"),
        ({**tensors, "base_model.model.odd": torch.ones(2)}, "is not part of an update"),
        ({}, "no update in it"),
    ]:
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(UserError, match=re.escape(problem)):
            read_adapter(folder)
