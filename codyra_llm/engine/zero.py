"""Access to parameters whatever ZeRO stage holds them. Nothing outside this folder knows that ZeRO exists.

At stage 3 a parameter is a flat slice on each rank (`ds_tensor`) and its `data` is empty unless gathered; at every
other stage, parameters are whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import add_delta_in_place


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, every parameter of the model is whole on every rank (to be read, not written)."""
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


def own_branches(model: nn.Module) -> None:
    """Makes A, B and gate of every branch ordinary whole parameters again, on every rank."""
    for _, layer in gated_layers(model):
        names = [name for name in ("A", "B", "gate") if is_zero_param(getattr(layer, name))]
        parameters = [getattr(layer, name) for name in names]
        with deepspeed.zero.GatheredParameters(parameters, enabled=bool(parameters)):
            whole = [parameter.detach().clone() for parameter in parameters]
        for name, parameter, value in zip(names, parameters, whole, strict=True):
            setattr(layer, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def add_delta(projection: nn.Module, B: torch.Tensor, A: torch.Tensor) -> None:
    """weight += B @ A without moving a base weight: each rank adds its own rows to its own slice.

    B [out_features, rank], A [rank, in_features], both whole on every rank.
    """
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]
    if not is_zero_param(weight):
        add_delta_in_place(projection, B, A)
        return
    weight.partition()  # type: ignore[attr-defined]  # a persistent small weight is also held whole; drop that copy
    own: torch.Tensor = weight.ds_tensor  # type: ignore[attr-defined]
    columns = A.shape[1]
    start = dist.get_rank(weight.ds_process_group) * own.numel()  # type: ignore[attr-defined]
    stop = min(start + own.numel(), B.shape[0] * columns)  # the last slice may end in padding
    if start >= stop:
        return
    first_row, last_row = start // columns, (stop - 1) // columns
    delta = (B[first_row : last_row + 1] @ A).flatten()[start - first_row * columns : stop - first_row * columns]
    part = own.data[: stop - start]
    delta = delta.to(own.device)  # offloaded slices are on the CPU
    part.copy_(part.to(delta.dtype) + delta)


def parameter_count(model: nn.Module) -> int:
    """Number of values in the model's parameters, each counted once, whole or partitioned."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
