"""An entry of the ledger, read by PEFT, which has no gates."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from codyra_llm.adapter import CoDyRAConfig, inject, prune
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import apply_deltas, deltas, unwrap
from codyra_llm.ledger.entry import read_entry, write_entry
from tests.models import tiny_model

IDS = torch.arange(3, 15).view(2, 6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_peft_loads_an_entry_and_computes_the_same(architecture: str, tmp_path: Path) -> None:
    base = tiny_model(architecture)
    model = copy.deepcopy(base)
    inject(model, CoDyRAConfig(rank=4))
    for number, (_, layer) in enumerate(gated_layers(model)):
        torch.nn.init.normal_(layer.B, std=0.1)
        layer.gate.data.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))
        layer.gate.data[: number % 5] = 0  # ranks 4 to 0
    assert sorted({module.rank for module in prune(model)}) == [0, 1, 2, 3, 4]
    updates = deltas(model)
    with torch.no_grad():
        plain, expected = base(input_ids=IDS).logits, model(input_ids=IDS).logits
    assert (expected - plain).abs().max() > 1e-2
    write_entry(tmp_path / "entry", updates, "base")

    theirs = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "entry")
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    unwrap(model)
    apply_deltas(model, read_entry(tmp_path / "entry"))
    merged = theirs.merge_and_unload()
    assert merged.state_dict().keys() == model.state_dict().keys()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-6, rtol=1e-5)
