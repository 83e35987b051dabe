"""Merging into a quantized base: the original plus all updates, quantized once, for any number of tasks."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from codyra_llm.adapter import CoDyRAConfig
from codyra_llm.adapter.injection import find_targets
from codyra_llm.engine.zero import add_delta
from codyra_llm.ledger.entry import read_entry, summed, write_entry
from codyra_llm.models.load import load_model, original_weights
from codyra_llm.models.quantize import dequantized, quantization_config, quantized, set_weight
from tests.models import WIDE, tiny_model

TASKS = 8


@pytest.fixture
def entries(tmp_path: Path) -> list[Path]:
    """Entries with updates of every projection, a hundredth of the weights' size: far less than a step of NF4."""
    model, folders = tiny_model(**WIDE), [tmp_path / f"{number:02d}-task" for number in range(1, TASKS + 1)]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        updates = {}
        for name in find_targets(model, CoDyRAConfig()):
            weight = model.get_submodule(name).weight
            scale = weight.std().item() / 100 / 2**0.5
            updates[name] = torch.randn(len(weight), 2) * scale, torch.randn(2, weight.shape[1])
        write_entry(folder, updates, "base")
    return folders


def merge_task_by_task(base: Path, quantization: str, entries: list[Path]) -> nn.Module:
    model, original = load_model(str(base), quantization=quantization), original_weights(str(base))
    for number, entry in enumerate(entries, 1):
        for name, factors in summed(entries[:number], entry):
            add_delta(model.get_submodule(name), *factors, original(f"{name}.weight"))
    return model


def merge_what_is_held(base: Path, quantization: str, entries: list[Path]) -> nn.Module:
    """Merges without the original weights: each task's update is added to the dequantized weights."""
    model = load_model(str(base), quantization=quantization)
    for entry in entries:
        for name, (B, A) in read_entry(entry).items():
            layer = model.get_submodule(name)
            set_weight(layer, quantized(layer, dequantized(layer) + B @ A))
    return model


def sums(base: Path, entries: list[Path]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns (original, sum of updates) of each projection, in fp64."""
    model = load_model(str(base))
    weights = {name: model.get_submodule(name).weight.detach().double() for name, _ in summed(entries)}
    return {name: (weights[name], B.double() @ A.double()) for name, (B, A) in summed(entries)}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_after_eight_tasks_the_bits_are_those_of_one_quantization(
    wide_folder: Path, tmp_path: Path, entries: list[Path], quantization: str
) -> None:
    merged = merge_task_by_task(wide_folder, quantization, entries)
    plain, original = load_model(str(wide_folder)), original_weights(str(wide_folder))
    for name, factors in summed(entries):
        add_delta(plain.get_submodule(name), *factors, original(f"{name}.weight"))
    plain.save_pretrained(tmp_path / "sum")
    config = quantization_config(quantization, torch.float32)
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "sum", quantization_config=config)
    assert merged.state_dict().keys() == once.state_dict().keys()
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in once.state_dict().items())


def test_without_the_original_four_bits_lose_the_updates(wide_folder: Path, entries: list[Path]) -> None:
    """Measures the share of the updates by which the weights moved, and their distance from the exact sum."""
    base = load_model(str(wide_folder), quantization="nf4")
    ours, theirs = (merge(wide_folder, "nf4", entries) for merge in (merge_task_by_task, merge_what_is_held))
    kept, errors, one = {ours: 0.0, theirs: 0.0}, {ours: 0.0, theirs: 0.0}, 0.0
    whole = 0.0
    for name, (weight, update) in sums(wide_folder, entries).items():
        start = dequantized(base.get_submodule(name))
        for model in (ours, theirs):
            held = dequantized(model.get_submodule(name))
            kept[model] += float(((held - start) * update).sum())
            errors[model] += float((held - weight - update).square().sum())
        layer = base.get_submodule(name)
        set_weight(layer, quantized(layer, (weight + update).float()))
        one += float((dequantized(layer) - weight - update).square().sum())
        whole += float(update.square().sum())
    assert errors[ours] == pytest.approx(one, rel=1e-3)
    assert errors[theirs] > errors[ours]
    assert 0.8 < kept[ours] / whole < 1.2
    assert kept[theirs] / whole < 0.2
