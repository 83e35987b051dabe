"""A base model in 4 or 8 bits: bitsandbytes layers in place of a model's projections (QLoRA, arXiv 2305.14314).

nf4: blocks of 64 weights in 4 bits with a scale each, the scales themselves in 8 bits (double quantization): 4.13 bits
per weight. int8: rows of 8-bit weights with a scale each; in evaluation the inputs are rounded to 8 bits as well
(LLM.int8(), arXiv 2208.07339). The quantized projections are those that transformers chooses: every linear layer but
the head.

bitsandbytes takes over a second to import, so the imports are in functions that only a quantized model needs.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from codyra_llm.errors import UserError

NF4_BLOCK = 64  # weights per scale; on some CPUs bitsandbytes gives wrong results if a row is not a multiple of it


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Returns the quantization_config of a quantized model's config.json, with which transformers can load it."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantized_names(model: PreTrainedModel) -> list[str]:
    """Returns the names of the layers to be quantized, for a model that is not quantized."""
    kept = _kept(model)
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in names if should_convert_module(name, kept)]


def check_widths(model: PreTrainedModel, quantization: str | None) -> None:
    """Raises UserError if a projection of an unquantized model cannot be quantized in nf4: rows need whole blocks."""
    for name in quantized_names(model) if quantization == "nf4" else ():
        _check_width(
            f"model.quantization nf4: {name}", model.get_submodule(name), "use int8, or leave model.quantization empty"
        )


def check_loaded_widths(model: PreTrainedModel) -> None:
    """Raises UserError if a model that was saved in 4 bits has rows that do not consist of whole blocks."""
    for name, module in model.named_modules():
        if is_quantized(module) and isinstance(module, sys.modules["bitsandbytes"].nn.Linear4bit):
            _check_width(f"a model in 4 bits: {name}", module, "give the model that is not quantized")


def _check_width(projection: str, module: Any, remedy: str) -> None:
    if module.in_features % NF4_BLOCK:
        raise UserError(
            f"{projection} has {module.in_features} inputs, which is no multiple of {NF4_BLOCK}, the size of its "
            f"blocks; {remedy}"
        )


def quantize_structure(model: PreTrainedModel, quantization: str) -> None:
    """Replaces a model's projections by layers for quantized weights, on the meta device.

    Raises:
        UserError: as `check_widths`.
    """
    check_widths(model, quantization)
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = quantization_config(quantization, model.dtype)
    replace_with_bnb_linear(model, _kept(model), config)
    for layer in filter(is_quantized, model.modules()):
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(model.dtype)
    model.config.quantization_config = config
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns at each 8-bit product


def _kept(model: PreTrainedModel) -> list[str]:
    return HfQuantizer.get_modules_to_not_convert(model, None, list(model._keep_in_fp32_modules or ()))


def is_quantized(module: nn.Module) -> bool:
    """True if a module stores its weight in 4 or 8 bits."""
    bnb = sys.modules.get("bitsandbytes")  # if it is not imported, there can be no layer of it
    return bnb is not None and isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))


def keep_trainable(model: nn.Module) -> None:
    """Prevents bitsandbytes from repacking 4-bit weights in a forward pass without gradients.

    On CPUs with AVX512-BF16, `Linear4bit.forward` repacks them in evaluation mode. A product with repacked weights has
    no gradient, and nothing unpacks them for the next task.
    """
    for layer in filter(is_quantized, model.modules()):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized(layer: Any, weight: torch.Tensor) -> Any:
    """Returns the quantized parameter of a layer for `weight` [out_features, in_features], fp32, on the same device."""
    import bitsandbytes as bnb

    packed: Any
    if isinstance(layer, bnb.nn.Linear8bitLt):
        packed = bnb.nn.Int8Params(weight, requires_grad=False)
        return packed.to(weight.device)
    packed = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    packed = packed.to(weight.device)
    packed.quant_state.dtype = layer.compute_dtype  # dtype of the dequantized weight in a backward pass
    return packed


def set_weight(layer: Any, packed: Any, scales: Any = None) -> None:
    """Sets a layer's weight to a result of `quantized`, or to a part of one with the `scales` of the whole."""
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear8bitLt):
        layer.state.reset_grads()  # it stores the weight since the first forward pass
    else:
        scales = scales or packed.quant_state
        layer.quant_state = packed.quant_state = scales
    layer.weight = packed


def quantized_tensors(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a quantized checkpoint, with only one weight in memory at a time.

    Args:
        model: on the meta device, after `quantize_structure`.
        weights: (name, values) of the unquantized model's weights; those to be quantized in fp32.
    """
    for name, weight in weights:
        owner, _, own_name = name.rpartition(".")
        layer: Any = model.get_submodule(owner)
        if own_name != "weight" or not is_quantized(layer):
            yield name, weight
            continue
        empty = layer.weight
        set_weight(layer, quantized(layer, weight))
        del weight  # before the next one is created
        tensors = layer.state_dict(prefix=f"{owner}.")
        yield from ((key, tensor) for key, tensor in tensors.items() if not tensor.is_meta)  # a bias comes separately
        set_weight(layer, empty)


def dequantized(layer: Any) -> torch.Tensor:
    """Returns the dequantized weight of a layer, [out_features, in_features], fp32."""
    import bitsandbytes as bnb

    weight: Any = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        unpacked: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return unpacked.float()
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales).float()
