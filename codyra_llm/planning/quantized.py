"""Stand-ins for quantized layers on the meta device, with the operations and saved tensors of bitsandbytes' layers.

A product dequantizes the weight into the compute dtype and then frees it; the dequantized weight is not saved for the
backward pass.
"""

from math import ceil
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.injection import replace_module
from codyra_llm.models.quantize import quantized_names


class QuantizedLinear(nn.Linear):
    """A linear layer on the meta device; its weight has the unquantized shape but is counted as quantized."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        output: torch.Tensor = _Unpacked.apply(input, self.weight)
        return output if self.bias is None else output + self.bias


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return input @ weight.clone().T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.weight.clone(), None


def stand_in(model: PreTrainedModel, quantization: str) -> None:
    """Replaces a model's projections by stand-ins; `stored_bytes` of a weight is its size after quantization."""
    for name in quantized_names(model):
        plain: Any = model.get_submodule(name)
        layer = QuantizedLinear(plain.in_features, plain.out_features, plain.bias is not None, "meta")
        layer.weight, layer.bias = plain.weight, plain.bias
        layer.weight.stored_bytes = _stored_bytes(quantization, *plain.weight.shape)  # type: ignore[attr-defined]
        replace_module(model, name, layer)


def _stored_bytes(quantization: str, out_features: int, in_features: int) -> int:
    """Returns the bytes of a quantized weight with its scales.

    int8: rows of bytes with an fp32 scale each. nf4: 4-bit blocks of 64 with an 8-bit scale each, and an fp32 scale for
    every 256 of these.
    """
    values = out_features * in_features
    if quantization == "int8":
        return values + 4 * out_features
    return ceil(values / 2) + ceil(values / 64) + 4 * ceil(values / 64 / 256)
