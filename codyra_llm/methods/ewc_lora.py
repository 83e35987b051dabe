"""EWC-LoRA: penalizes the update itself, not its factors, by Fisher information of the weights (arXiv 2602.17559)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import Penalty, RowPasses
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class EWCLoRASettings:
    """Settings of the penalty and of the Fisher information that it uses."""

    strength: float = option(1.0, "lambda: weight of the penalty lambda/2 sum F (B A)^2; 0: lora", within=AT_LEAST_ZERO)
    decay: float = option(1.0, "gamma: what is left of earlier tasks' Fisher information after a task", within=FRACTION)
    rows: int = option(200, "rows of a task that its Fisher information is measured on, at most", within=AT_LEAST_ONE)


class EWCLoRA(Method):
    """Fixed-rank LoRA, merged, with the penalty lambda/2 sum over entries of F (B A)^2; the update starts at 0.

    F is the diagonal of the empirical Fisher information of each projection's weight: the mean over rows of the squared
    gradient of the row's summed answer loss (released: squares of batch means); after each task F <- gamma F + F_task.
    The released code sums A and B separately, so its model contains (sum B)(sum A); here the updates are summed. Kept:
    "<projection>", as large as its weight, in fp32.
    """

    name = "ewc_lora"
    summary = "EWC-LoRA: a quadratic penalty on the update, weighted by the weights' Fisher information"
    Settings = EWCLoRASettings
    needs = Needs(first_task=True)
    _measured: dict[str, torch.Tensor]

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns lambda/2 sum F (B A)^2 and its gradient: lambda (F * B A) A^T for B, lambda B^T (F * B A) for A."""
        value = 0.0
        gradients: dict[str, torch.Tensor] = {}
        strength = self.settings.strength
        for name, (B, A) in branches.items() if strength and self.kept else ():
            update = B @ A
            pulled = strength * self.kept[name].to(update) * update
            value += float((pulled * update).sum()) / 2
            gradients |= {f"{name}.B": pulled @ A.T, f"{name}.A": B.T @ pulled}
        return value, gradients

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures the task's Fisher information on rows drawn by the seed."""
        drawn = self.drawn(rows, self.settings.rows, f"fisher/{len(rows)}")
        self._measured = passes.mean_of_weight_gradients(drawn, torch.square)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as fixed-rank LoRA, and updates the kept Fisher information with the task's."""
        report, updates = super().finish(model)
        for name, fisher in self._measured.items():
            earlier = self.kept.get(name)
            self.kept[name] = fisher if earlier is None else self.settings.decay * earlier + fisher
        return report, updates
