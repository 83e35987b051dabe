"""The trainable state of a task in training, whole and by name, independent of ZeRO's partitioning.

For each branch: A, B and gate, and the optimizer's moving averages of each ("<layer>.A.exp_avg" and so on). DeepSpeed
keeps them in flat partitions that depend on stage and world size; whole, they can be loaded at any of these.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.optimizer import AVERAGES, Proximal
from codyra_llm.distributed.ranks import Ranks


@dataclass(frozen=True)
class TaskState:
    """A task in training: the optimizer steps done, and the result of `read_state` after them, whole on every rank."""

    step: int
    tensors: dict[str, torch.Tensor]


def taken(state: TaskState | None, start: str) -> dict[str, torch.Tensor]:
    """Removes the tensors whose names begin with `start` from a state, if any; returns them without that prefix."""
    found = {name: tensor for name, tensor in state.tensors.items() if name.startswith(start)} if state else {}
    return {name.removeprefix(start): state.tensors.pop(name) for name in found}  # type: ignore[union-attr]


def read_state(model: nn.Module, engine: Any, optimizer: Proximal, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Returns the whole state on the CPU of rank 0; empty on other ranks. Every rank must call it, after a step."""
    state = {}
    moments_of = functools.lru_cache(maxsize=2)(optimizer.moments)  # most parameters are in one of two flat slices
    for name, parameter, keys in trainable(model):
        size, shape = getattr(parameter, "ds_numel", parameter.numel()), getattr(parameter, "ds_shape", parameter.shape)
        whole = torch.zeros(1 + len(keys), size, device=ranks.device)
        piece = own_piece(engine, parameter)
        if piece:
            moments = moments_of(piece.flat)
            for row, source in zip(whole, [piece.flat, *(moments.get(key) for key in keys)], strict=True):
                if source is not None:  # only importance mode has an importance
                    row[piece.offset : piece.offset + piece.length] = piece.of(source)
        if engine.zero_optimization_stage() > 0:  # at stage 0 every rank has all of it
            dist.reduce(whole, 0)
        if ranks.is_main:
            for suffix, row in zip(("", *(f".{key}" for key in keys)), whole.cpu(), strict=True):
                state[name + suffix] = row.view(shape).clone()
    return state


def write_branches(model: nn.Module, state: TaskState) -> None:
    """Copies A, B and gate to a model whose branches are still whole, before it is wrapped by an engine."""
    with torch.no_grad():
        for name, parameter, _ in trainable(model):
            parameter.copy_(state.tensors[name])


def write_moments(model: nn.Module, engine: Any, optimizer: Proximal, state: TaskState) -> None:
    """Copies the moving averages to a new engine's optimizer."""
    found: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    for name, parameter, keys in trainable(model):
        piece = own_piece(engine, parameter)
        if not piece:
            continue
        if piece.flat not in found:
            found[piece.flat] = {key: torch.zeros_like(piece.flat) for key in keys}
        for key in keys:
            value = state.tensors[f"{name}.{key}"].flatten()[piece.offset : piece.offset + piece.length]
            piece.of(found[piece.flat][key]).copy_(value)
    for flat, moments in found.items():
        optimizer.set_moments(flat, state.step, moments, of_gates="importance" in moments)


@dataclass(frozen=True)
class Piece:
    """This rank's part of a parameter: its flat [offset : offset + length] is [start : start + length] of `flat`."""

    flat: torch.Tensor
    start: int
    offset: int
    length: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the part of a tensor that has the layout of `flat`."""
        return values.detach().view(-1)[self.start : self.start + self.length]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, tuple[str, ...]]]:
    """Yields (name, parameter, keys of its moving averages) of each trainable parameter."""
    for name, layer in gated_layers(model):
        for part, keys in (("A", AVERAGES[:2]), ("B", AVERAGES[:2]), ("gate", AVERAGES)):
            if getattr(layer, part).requires_grad:
                yield f"{name}.{part}", getattr(layer, part), keys


def own_piece(engine: Any, parameter: Any) -> Piece | None:
    """Returns this rank's part of a parameter among the tensors that the optimizer steps; None if it has no part."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return Piece(parameter, 0, 0, parameter.numel())
    if stage == 3:
        piece, _ = _partition(zero, parameter)
        return piece if piece.length else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(
        zero.single_partition_of_fp32_groups[mapping.param_group_index], flat.start, inside.start, inside.numel
    )


def clear_padding(model: nn.Module, engine: Any) -> None:
    """Zeroes the padding that ZeRO-3 appends to the last parts of parameters, which DeepSpeed leaves uninitialized."""
    with torch.no_grad():
        for _, parameter, _ in trainable(model):
            piece, padded = _partition(engine.optimizer, parameter)
            piece.flat[piece.start + piece.length : piece.start + padded] = 0


def _partition(zero: Any, parameter: Any) -> tuple[Piece, int]:
    """Returns this rank's part of a parameter under ZeRO-3, and its length with padding."""
    group, start, padded = zero.grad_position[zero.get_param_id(parameter)]
    offset = dist.get_rank(zero.dp_process_group) * padded
    length = max(0, min(padded, parameter.ds_numel - offset))
    return Piece(zero.fp32_partitioned_groups_flat[group], start, offset, length), padded
