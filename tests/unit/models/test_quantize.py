"""A quantised base: the bits that transformers gives, loaded in parts and saved as an ordinary folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from codyra_llm.adapter import CoDyRAConfig, inject, merge
from codyra_llm.adapter.injection import find_targets
from codyra_llm.engine.launch import start
from codyra_llm.engine.zero import parameter_count, weight_layout, whole_weights
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_config_and_tokenizer, load_model
from codyra_llm.models.quantize import dequantized, is_quantized, quantization_config
from codyra_llm.models.save import save_model
from tests.models import CONFIGS, tiny_model

WAYS = [("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32"), ("int8", "bfloat16")]


@pytest.mark.parametrize(("quantization", "dtype"), WAYS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_is_what_transformers_quantizes(architecture: str, quantization: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(architecture, dtype=getattr(torch, dtype)).save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), dtype, quantization=quantization)
    options = {"quantization_config": quantization_config(quantization, getattr(torch, dtype))}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype), **options).eval()
    quantized = [name for name, module in ours.named_modules() if is_quantized(module)]
    assert quantized == [name for name, module in theirs.named_modules() if is_quantized(module)]
    assert quantized == find_targets(ours, CoDyRAConfig()), "all projections, and nothing else"
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "quant_state" not in name:  # which names the dtype that was quantised from
            assert torch.equal(found[name], tensor), name
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert parameter_count(ours) == parameter_count(tiny_model(architecture))


@pytest.mark.parametrize(("quantization", "dtype"), WAYS)
def test_what_is_saved_is_what_transformers_loads(
    tiny_folder: Path, tmp_path: Path, quantization: str, dtype: str
) -> None:
    start()
    model = load_model(str(tiny_folder), dtype, quantization=quantization)
    tokenizer = load_config_and_tokenizer(str(tiny_folder))[1]
    ids = torch.arange(3, 40)[None]
    logits = model(ids).logits
    save_model(model, weight_layout(model), whole_weights(model), tokenizer, tmp_path / "saved", "# card", 20_000)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again.eval()(ids).logits, logits)
    assert again.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("quantization", "error"), [("nf4", 0.15), ("int8", 0.01)])
def test_a_weight_is_close_to_the_original(tiny_folder: Path, quantization: str, error: float) -> None:
    model, original = load_model(str(tiny_folder), quantization=quantization), load_model(str(tiny_folder))
    for name in find_targets(model, CoDyRAConfig()):
        weight = original.get_submodule(name).weight
        assert 0 < (dequantized(model.get_submodule(name)) - weight).norm() < error * weight.norm()


def test_an_update_is_not_added_to_quantized_weights(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), quantization="int8")
    inject(model)
    with pytest.raises(ValueError, match="would lose most of an update"):
        merge(model)


def test_weights_that_cannot_be_read_in_parts(tiny_folder: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    save_file({name.removeprefix("model."): weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.quantization needs weights that can be read in parts: .*not the same"):
        load_model(str(tmp_path), quantization="nf4")
