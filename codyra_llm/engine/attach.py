"""Connects a method's hooks to an engine, at any ZeRO stage: whole branches, optimizer slices, passes over rows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import Deltas
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.state import Piece, own_piece, trainable
from codyra_llm.engine.zero import whole_copies
from codyra_llm.example import Example
from codyra_llm.methods.hooks import Hooks, Slice, Slices, overrides


class Attached:
    """The hooks of a method while an engine trains a task; hooks that the method does not override cost nothing.

    Args:
        hooks: the method's hooks.
        model: the model, with gated branches.
        engine: the DeepSpeed engine over the model.
        optimizer: the optimizer of the branches.
        batches: the rows of each step.
        ranks: the ranks of the engine.
        passes: makes passes over single rows, from the arguments of `ModelPasses`.
    """

    def __init__(
        self,
        hooks: Hooks,
        model: nn.Module,
        engine: Any,
        optimizer: Proximal,
        batches: GlobalBatches,
        ranks: Ranks,
        passes: Callable[..., ModelPasses] = ModelPasses,
    ) -> None:
        self.hooks, self.model, self.engine, self.optimizer = hooks, model, engine, optimizer
        how = (batches.pad_token_id, ranks, self._after_pass)
        projections = dict(gated_layers(model))
        self.passes = passes(engine.module, projections, *how, most=batches.micro_batch_size, rows_of=batches.rows_of)
        self._gradients: dict[str, torch.Tensor] = {}
        if overrides(hooks, "penalty") or overrides(hooks, "on_gradient"):
            for name, parameter, _ in trainable(model):
                parameter.register_hook(self._change(name))
        if overrides(hooks, "before_step"):
            optimizer.before_step = lambda: hooks.before_step(self._slices())
        if overrides(hooks, "after_step"):
            optimizer.after_step = lambda: hooks.after_step(self._slices())

    @functools.cached_property
    def _pieces(self) -> dict[str, Piece]:
        """This rank's part of each parameter, which does not change during the engine's lifetime."""
        pieces = ((name, own_piece(self.engine, parameter)) for name, parameter, _ in trainable(self.model))
        return {name: piece for name, piece in pieces if piece}

    def begin_step(self, step: int) -> float:
        """Lets the method prepare an optimizer step; returns the value of its penalty."""
        if overrides(self.hooks, "begin_step"):
            with self.passes.apart():
                self.hooks.begin_step(step, self.passes)
        if not overrides(self.hooks, "penalty"):
            return 0.0
        value, gradients = self.hooks.penalty(whole_branches(self.model))
        self._gradients = dict(gradients)
        return value

    def end_training(self, rows: Sequence[Example]) -> None:
        """Lets the method measure what it needs while the engine exists, then detaches the optimizer's hooks."""
        if overrides(self.hooks, "after_training"):
            with self.passes.apart():
                self.hooks.after_training(rows, self.passes)
        self.optimizer.before_step = self.optimizer.after_step = None

    def _after_pass(self) -> None:
        if self.engine.zero_optimization_stage() == 3:
            # modules whose input has no gradient would keep their weights gathered
            self.engine.optimizer.parameter_offload.partition_all_parameters()

    def _change(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        # DeepSpeed averages gradients over ranks and sums them over the micro batches of a step
        micro_batches = self.engine.gradient_accumulation_steps()

        def change(gradient: torch.Tensor) -> torch.Tensor:
            if self.passes.busy:
                return gradient
            gradient = self.hooks.on_gradient(name, gradient)
            added = self._gradients.get(name)
            return gradient if added is None else gradient + added / micro_batches

        return change

    def _slices(self) -> Slices:
        """Slices that the optimizer is about to update or has updated: above stage 0, one call for each group."""
        stepped = {p: p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None}
        found = [
            Slice(name, piece.of(piece.flat), piece.of(stepped[piece.flat]), piece.offset)
            for name, piece in self._pieces.items()
            if piece.flat in stepped
        ]
        return Slices(found, self.engine.zero_optimization_stage() > 0)


def whole_branches(model: nn.Module) -> Deltas:
    """Returns (B [out_features, rank], A [rank, in_features]) of each branch, whole on every rank; without gates."""
    branches = {}
    for name, layer in gated_layers(model):
        B, A = whole_copies([layer.B, layer.A])
        branches[name] = B, A
    return branches
