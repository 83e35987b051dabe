"""A frozen low-rank update taken away from a projection while a branch continues from it."""

import torch
from torch.utils.hooks import RemovableHandle

from codyra_llm.adapter.layer import CoDyRALinear


def subtract(layer: CoDyRALinear, B: torch.Tensor, A: torch.Tensor) -> RemovableHandle:
    """Lets the layer's projection compute W x - B A x until the returned handle is removed.

    With a branch that starts at the same B and A, the layer starts as W x, and what the branch adds is the difference.

    Args:
        B: [out_features, rank]; A: [rank, in_features]; frozen, in the dtype in which the product is computed.
    """

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not layer.enabled:  # without the branch, the projection is what it was before
            return output
        return output - ((inputs[0].to(A.dtype) @ A.T) @ B.T).to(output.dtype)

    return layer.base.register_forward_hook(hook)
