"""A quantized base: the same bits as transformers', loaded in parts, and saved as an ordinary folder."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from codyra_llm.adapter import CoDyRAConfig, inject, merge
from codyra_llm.adapter.injection import find_targets
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.zero import parameter_count, weight_layout, whole_weights
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_model
from codyra_llm.models.quantize import dequantized, is_quantized, keep_trainable, quantization_config
from codyra_llm.models.save import save_model
from codyra_llm.models.source import open_source
from tests.models import CONFIGS, WIDE, tiny_model

WAYS = [("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32"), ("int8", "bfloat16")]


@pytest.mark.parametrize(("quantization", "dtype"), WAYS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_is_what_transformers_quantizes(architecture: str, quantization: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(architecture, **WIDE, dtype=getattr(torch, dtype)).save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), dtype, quantization=quantization)
    options = {"quantization_config": quantization_config(quantization, getattr(torch, dtype))}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype), **options).eval()
    keep_trainable(theirs)
    quantized = [name for name, module in ours.named_modules() if is_quantized(module)]
    assert quantized == [name for name, module in theirs.named_modules() if is_quantized(module)]
    assert quantized == find_targets(ours, CoDyRAConfig()), "all projections, and nothing else"
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "quant_state" not in name:  # it contains the dtype before quantization
            assert torch.equal(found[name], tensor), name
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert parameter_count(ours) == parameter_count(tiny_model(architecture, **WIDE))


@pytest.mark.parametrize(("quantization", "dtype"), WAYS)
def test_what_is_saved_is_what_transformers_loads(
    wide_folder: Path, tmp_path: Path, quantization: str, dtype: str
) -> None:
    start()
    model = load_model(str(wide_folder), dtype, quantization=quantization)
    tokenizer = open_source(str(wide_folder)).tokenizer
    ids = torch.arange(3, 40)[None]
    logits = model(ids).logits
    save_model(model, weight_layout(model), whole_weights(model), tokenizer, tmp_path / "saved", "# card", 20_000)
    again, report = cast(
        tuple[Any, Any], AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    )
    assert not any(report.values())
    keep_trainable(again)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again.eval()(ids).logits, logits)
    assert again.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("quantization", "error"), [("nf4", 0.15), ("int8", 0.01)])
def test_a_weight_is_close_to_the_original(wide_folder: Path, quantization: str, error: float) -> None:
    model, original = load_model(str(wide_folder), quantization=quantization), load_model(str(wide_folder))
    for name in find_targets(model, CoDyRAConfig()):
        weight = original.get_submodule(name).weight
        assert 0 < (dequantized(model.get_submodule(name)) - weight).norm() < error * weight.norm()


def test_an_update_is_not_added_to_quantized_weights(wide_folder: Path) -> None:
    model = load_model(str(wide_folder), quantization="int8")
    inject(model)
    with pytest.raises(ValueError, match="would lose most of an update"):
        merge(model)


def test_weights_that_cannot_be_read_in_parts(wide_folder: Path, tmp_path: Path) -> None:
    weights = load_file(wide_folder / "model.safetensors")
    (tmp_path / "config.json").write_text((wide_folder / "config.json").read_text())
    save_file({name.removeprefix("model."): weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.quantization needs weights that can be read in parts: .*not the same"):
        load_model(str(tmp_path), quantization="nf4")


def test_weights_stay_as_they_train_on_a_cpu_that_would_repack_them(
    wide_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_model(str(wide_folder), quantization="nf4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        model(ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    inject(model)
    model.train()(ids).logits.sum().backward()
    for name, layer in gated_layers(model):
        assert layer.B.grad.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_rows_without_whole_blocks_are_refused_by_name(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"nf4: model\.layers\.0\.self_attn\.q_proj has 32 inputs, .* 64, .*use int8"):
        load_model(str(tmp_path), quantization="nf4")
    load_model(str(tmp_path), quantization="int8")


def test_a_model_saved_in_4_bits_without_whole_blocks_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    config = quantization_config("nf4", torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"in 4 bits: model\.layers\.0\.self_attn\.q_proj has 32 inputs, .* 64, .*give"):
        load_model(str(tmp_path))
