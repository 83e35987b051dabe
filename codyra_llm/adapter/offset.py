"""Frozen low-rank updates beside a projection: subtracted while a branch continues from them, added at inference."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from codyra_llm.adapter.functional import Mix
from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas


def subtract(layer: CoDyRALinear, B: torch.Tensor, A: torch.Tensor) -> RemovableHandle:
    """Makes the layer's projection compute W x - B A x until the returned handle is removed.

    With a branch that starts at the same B and A, the layer starts as W x, and the branch adds the difference.

    Args:
        layer: the layer with the branch.
        B: [out_features, rank], frozen, in the dtype of the product.
        A: [rank, in_features], frozen, in the dtype of the product.
    """

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not layer.enabled:  # without its branch, the layer is the projection alone
            return output
        return output - _product(inputs[0], B, A).to(output.dtype)

    return layer.base.register_forward_hook(hook)


def add(projection: nn.Module, B: torch.Tensor, A: torch.Tensor, mix: Mix | None = None) -> RemovableHandle:
    """Makes a plain projection compute W x + B A x until the returned handle is removed; shapes as in `subtract`.

    Args:
        projection: the projection.
        B: [out_features, rank].
        A: [rank, in_features].
        mix: transforms A x, [..., rank]; None leaves it unchanged.
    """

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + _product(inputs[0], B, A, mix).to(output.dtype)

    return projection.register_forward_hook(hook)


@contextmanager
def added(model: nn.Module, updates: Deltas, mix: Mix | None = None) -> Iterator[None]:
    """A context in which updates are added to the outputs of plain projections, by name (`add`)."""
    with ExitStack() as stack:
        for name, factors in updates.items():
            stack.callback(add(model.get_submodule(name), *factors, mix).remove)
        yield


def _product(input: torch.Tensor, B: torch.Tensor, A: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
    down = input.to(A.dtype) @ A.T
    return (mix(down) if mix else down) @ B.T
