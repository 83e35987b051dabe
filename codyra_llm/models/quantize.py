"""A base in 4 or 8 bits: bitsandbytes' layers in the place of a model's projections (QLoRA, arXiv 2305.14314).

nf4: blocks of 64 weights in 4 bits and a scale each, the scales themselves in 8 bits (double quantization): 4.13 bits
a weight. int8: rows of 8-bit weights with a scale each; in evaluation the inputs are rounded to 8 bits as well
(LLM.int8(), arXiv 2208.07339). Which projections these are is transformers' choice: every linear layer but the head.

bitsandbytes takes over a second to import, so only a quantized model does: the imports are in the functions.
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

NF4_BLOCK = 64  # weights that share a scale; on some CPUs bitsandbytes computes wrong where a row has no whole blocks


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What a config.json says of a quantized model, so that transformers loads it by itself."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantized_names(model: PreTrainedModel) -> list[str]:
    """The names of the layers that are to be quantized, of a model that is not."""
    kept = _kept(model)
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    return [name for name in names if should_convert_module(name, kept)]


def check_widths(model: PreTrainedModel, quantization: str | None) -> None:
    """Raises UserError where a projection of an unquantized model cannot be quantized in whole blocks of a row."""
    for name in quantized_names(model) if quantization == "nf4" else ():
        _check_width(
            f"model.quantization nf4: {name}", model.get_submodule(name), "use int8, or leave model.quantization empty"
        )


def check_loaded_widths(model: PreTrainedModel) -> None:
    """Raises UserError where a model that was saved in 4 bits has rows without whole blocks."""
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
    """Puts layers that will hold quantized weights, on the meta device, in the place of a model's projections.

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
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a warning for each 8-bit product


def _kept(model: PreTrainedModel) -> list[str]:
    return HfQuantizer.get_modules_to_not_convert(model, None, list(model._keep_in_fp32_modules or ()))


def is_quantized(module: nn.Module) -> bool:
    """Whether a module holds its weight in 4 or 8 bits."""
    bnb = sys.modules.get("bitsandbytes")  # not imported: there can be no layer of it
    return bnb is not None and isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))


def keep_trainable(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in a forward pass without gradients.

    On CPUs with AVX512-BF16, `Linear4bit.forward` does so in evaluation mode. A product with repacked weights has no
    gradient, and nothing unpacks them for the next task.
    """
    for layer in filter(is_quantized, model.modules()):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized(layer: Any, weight: torch.Tensor) -> Any:
    """`weight` [out_features, in_features], fp32, as the quantized parameter of a layer, on the device it is on."""
    import bitsandbytes as bnb

    packed: Any
    if isinstance(layer, bnb.nn.Linear8bitLt):
        packed = bnb.nn.Int8Params(weight, requires_grad=False)
        return packed.to(weight.device)
    packed = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    packed = packed.to(weight.device)
    packed.quant_state.dtype = layer.compute_dtype  # what a backward pass unpacks the weight into
    return packed


def set_weight(layer: Any, packed: Any, scales: Any = None) -> None:
    """Makes what `quantized` gave, or a part of it with the `scales` of the whole, a layer's weight."""
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear8bitLt):
        layer.state.reset_grads()  # where the weight has been since the first forward pass
    else:
        scales = scales or packed.quant_state
        layer.quant_state = packed.quant_state = scales
    layer.weight = packed


def quantized_tensors(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a quantized checkpoint holds, weight after weight: none is there but the one at hand.

    Args:
        model: on the meta device, as `quantize_structure` leaves it.
        weights: (name, values) of those of the model that was not; what is to be quantized, in fp32.
    """
    for name, weight in weights:
        owner, _, own_name = name.rpartition(".")
        layer: Any = model.get_submodule(owner)
        if own_name != "weight" or not is_quantized(layer):
            yield name, weight
            continue
        empty = layer.weight
        set_weight(layer, quantized(layer, weight))
        del weight  # before the next is made
        tensors = layer.state_dict(prefix=f"{owner}.")
        yield from ((key, tensor) for key, tensor in tensors.items() if not tensor.is_meta)  # a bias comes by itself
        set_weight(layer, empty)


def dequantized(layer: Any) -> torch.Tensor:
    """The weight that a quantized layer stands for, [out_features, in_features] in fp32."""
    import bitsandbytes as bnb

    weight: Any = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        unpacked: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return unpacked.float()
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales).float()
