"""Stand-ins for quantized layers where there is no data: they compute and keep what bitsandbytes' layers do.

A product unpacks the weight into the dtype it computes in and lets it go; nothing of that stays for the backward pass.
"""

from math import ceil
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.injection import replace_module
from codyra_llm.models.quantize import quantized_names


class QuantizedLinear(nn.Linear):
    """A linear layer on the meta device, whose weight has its plain shape but is counted as quantized."""

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
    """Puts stand-ins in the place of a model's projections; `stored_bytes` of a weight is what it will take."""
    for name in quantized_names(model):
        plain: Any = model.get_submodule(name)
        layer = QuantizedLinear(plain.in_features, plain.out_features, plain.bias is not None, "meta")
        layer.weight, layer.bias = plain.weight, plain.bias
        layer.weight.stored_bytes = _stored_bytes(quantization, *plain.weight.shape)  # type: ignore[attr-defined]
        replace_module(model, name, layer)


def _stored_bytes(quantization: str, out_features: int, in_features: int) -> int:
    """Of a weight and its scales: rows of bytes with an fp32 scale, or 4-bit blocks of 64 with an 8-bit scale.

    Of the 8-bit scales, every 256 share one in fp32.
    """
    values = out_features * in_features
    if quantization == "int8":
        return values + 4 * out_features
    return ceil(values / 2) + ceil(values / 64) + 4 * ceil(values / 64 / 256)
