"""The trainable state of a task in training, whole and by name, however ZeRO has cut it up.

For each branch: A, B and gate, and of each the optimizer's moving averages ("<layer>.A.exp_avg" and so on). DeepSpeed
keeps them in flat partitions that depend on stage and world size; whole, they can be taken up by any other.
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
    """A task in training: optimizer steps done, and what `read_state` gave after them, whole on every rank."""

    step: int
    tensors: dict[str, torch.Tensor]


def taken(state: TaskState | None, start: str) -> dict[str, torch.Tensor]:
    """Takes the tensors whose names begin with `start` out of a state, if there is one; named without it."""
    found = {name: tensor for name, tensor in state.tensors.items() if name.startswith(start)} if state else {}
    return {name.removeprefix(start): state.tensors.pop(name) for name in found}  # type: ignore[union-attr]


def read_state(model: nn.Module, engine: Any, optimizer: Proximal, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The whole state on rank 0, on the CPU; nothing on the others. Every rank must call it, after a step."""
    state = {}
    moments_of = functools.lru_cache(maxsize=2)(optimizer.moments)  # most parameters lie in one of two flat slices
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
    """Puts A, B and gate into a model whose branches are still whole, before an engine takes them over."""
    with torch.no_grad():
        for name, parameter, _ in trainable(model):
            parameter.copy_(state.tensors[name])


def write_moments(model: nn.Module, engine: Any, optimizer: Proximal, state: TaskState) -> None:
    """Puts the moving averages into a fresh engine's optimizer."""
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
        """The part of a tensor that is laid out as `flat` is."""
        return values.detach().view(-1)[self.start : self.start + self.length]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, tuple[str, ...]]]:
    """(name, parameter, the keys of its moving averages) of all that trains."""
    for name, layer in gated_layers(model):
        for part, keys in (("A", AVERAGES[:2]), ("B", AVERAGES[:2]), ("gate", AVERAGES)):
            if getattr(layer, part).requires_grad:
                yield f"{name}.{part}", getattr(layer, part), keys


def own_piece(engine: Any, parameter: Any) -> Piece | None:
    """Where this rank's part of a parameter lies in what the optimizer steps; None where it has no part of it."""
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
    """Zeroes what ZeRO-3 pads the last parts of parameters with, which DeepSpeed leaves as the memory was."""
    with torch.no_grad():
        for _, parameter, _ in trainable(model):
            piece, padded = _partition(engine.optimizer, parameter)
            piece.flat[piece.start + piece.length : piece.start + padded] = 0


def _partition(zero: Any, parameter: Any) -> tuple[Piece, int]:
    """This rank's part of a parameter under ZeRO-3, and its length with padding."""
    group, start, padded = zero.grad_position[zero.get_param_id(parameter)]
    offset = dist.get_rank(zero.dp_process_group) * padded
    length = max(0, min(padded, parameter.ds_numel - offset))
    return Piece(zero.fp32_partitioned_groups_flat[group], start, offset, length), padded
