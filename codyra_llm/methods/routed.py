"""Routed LoRA: one adapter for each task beside the untouched model, chosen by an oracle; a bound, not a method."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from codyra_llm.adapter.merge import Deltas, ModuleRank
from codyra_llm.adapter.offset import add
from codyra_llm.methods.base import Method, Needs


class Routed(Method):
    """Each task is learned from the base model by itself, and its rows are answered with its adapter.

    Nothing is forgotten by construction: it shows what single tasks come to. The task of a test row is told, not
    guessed, and general ability is the base model's. Nothing is merged: the saved model is the base. Kept:
    "<task>/<projection>.A", ".B" of every task.
    """

    name = "routed"
    summary = "bound: an adapter for each task, chosen by an oracle, none of them merged"
    needs = Needs(first_task=True)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """The update is kept, and not merged."""
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            self.kept |= {f"{self.task}/{name}.B": B.cpu(), f"{self.task}/{name}.A": A.cpu()}
        return report, {}

    @contextmanager
    def serving(self, model: nn.Module, task: str | None) -> Iterator[None]:
        """The task's adapter takes part; of a task that is not learned yet, nothing."""
        start, end = f"{task}/", ".B"
        names = [key[len(start) : -len(end)] for key in self.kept if key.startswith(start) and key.endswith(end)]
        with ExitStack() as stack:
            for name in names:
                factors: list[torch.Tensor] = [self.kept[f"{start}{name}.{part}"] for part in "BA"]
                stack.callback(add(model.get_submodule(name), *factors).remove)
            yield
