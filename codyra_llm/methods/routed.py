"""Routed LoRA: one unmerged adapter for each task over the base model, chosen by an oracle or a router."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.adapter.offset import added
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses
from codyra_llm.options import ABOVE_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.example import Example

MOMENT, SUM = "router/moment", "router/sum/"  # names of the router's tensors in `kept`


@dataclass(frozen=True)
class RoutedSettings:
    """Settings of how the adapter of a test row is chosen."""

    by: Literal["oracle", "mean", "ridge"] = option(
        "oracle", "oracle: the row's task is told; mean: the nearest mean of a task's prompts; ridge: ridge regression"
    )
    ridge: float = option(1.0, "weight of the ridge", within=ABOVE_ZERO)


class Routed(Method):
    """Each task is learned separately from the base model, and its rows are answered with its adapter.

    Nothing is forgotten by construction: with an oracle, the result is that of training each task alone. The input x of
    a router is the mean hidden state of a prompt after the base model's middle layer, scaled to length one. `mean`
    chooses the task whose mean has the largest cosine; `ridge` chooses the largest output of the regression
    (sum x x^T + ridge I)^-1 (sum x y^T), which each task's rows update exactly (after Any-SSR, arXiv 2503.13575).
    General ability is that of the base model. Nothing is merged: the saved model is the base. Kept:
    "<task>/<projection>.A", ".B" of every task; with a router "router/moment", "router/sum/<task>".
    """

    name = "routed"
    summary = "an adapter for each task, chosen by an oracle (a bound) or by a router, none of them merged"
    Settings = RoutedSettings
    needs = Needs(first_task=True, domains=("text",))

    _states: torch.Tensor  # of the prompts of the task in training

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes the router's inputs for the task's prompts, on the model without adapters."""
        if self.settings.by != "oracle":
            self._states = unit_rows(passes.prompt_states(rows))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Keeps the update instead of merging it, and adds the task's prompts to the router."""
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            self.kept |= {f"{self.task}/{name}.B": B.cpu(), f"{self.task}/{name}.A": A.cpu()}
        if self.settings.by != "oracle":
            moment = self._states.T @ self._states
            self.kept[MOMENT] = self.kept[MOMENT] + moment if MOMENT in self.kept else moment
            self.kept[f"{SUM}{self.task}"] = self._states.sum(0)
        return report, {}

    def routes(self, rows: "Sequence[Example]", passes: RowPasses) -> list[str] | None:
        """Returns the task with the highest router score for each row; None with an oracle."""
        if self.settings.by == "oracle":
            return None
        sums = {name.removeprefix(SUM): total for name, total in self.kept.items() if name.startswith(SUM)}
        weights = torch.stack(list(sums.values()), dim=1)  # [hidden_size, tasks]
        if self.settings.by == "ridge":
            moment = self.kept[MOMENT]
            weights = torch.linalg.solve(moment + self.settings.ridge * torch.eye(len(moment)).to(moment), weights)
        else:
            weights = unit_rows(weights.T).T
        chosen = (unit_rows(passes.prompt_states(rows)) @ weights).argmax(dim=1)
        return [list(sums)[number] for number in chosen.tolist()]

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[None]:
        """Returns a context in which the task's adapter is active; for a task not learned yet, none is."""
        start, end = f"{task}/", ".B"
        names = [key[len(start) : -len(end)] for key in self.kept if key.startswith(start) and key.endswith(end)]
        return added(model, {name: (self.kept[f"{start}{name}.B"], self.kept[f"{start}{name}.A"]) for name in names})


def unit_rows(states: torch.Tensor) -> torch.Tensor:
    """Returns the rows scaled to length one, in float64."""
    return nn.functional.normalize(states.double())
