"""Online EWC: a continued adapter, penalized by Fisher information of earlier tasks (arXiv 1612.00796, 1805.06370)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.hooks import RowPasses, Slices
from codyra_llm.methods.seqlora import SeqLoRA
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class EWCSettings:
    """Settings of the penalty and of the Fisher information that it uses."""

    strength: float = option(
        1.0, "lambda: weight of the penalty lambda/2 sum F (theta - theta*)^2; 0: SeqLoRA", within=AT_LEAST_ZERO
    )
    decay: float = option(1.0, "gamma: what is left of earlier tasks' Fisher information after a task", within=FRACTION)
    rows: int = option(
        200, "training rows of a task that its Fisher information is measured on, at most", within=AT_LEAST_ONE
    )


class OnlineEWC(SeqLoRA):
    """Adds lambda F (theta - theta*) to the gradient, where theta* are A and B after the last task.

    F is the diagonal of the empirical Fisher information: the mean over rows of the squared gradient of the row's
    summed answer loss; after each task F <- gamma F + F_task. Kept: SeqLoRA's A and B, and "<parameter>.fisher".
    """

    name = "ewc"
    summary = "online EWC: SeqLoRA with a quadratic penalty weighted by Fisher information"
    Settings = EWCSettings
    _measured: dict[str, torch.Tensor]

    def before_step(self, slices: Slices) -> None:
        """Adds the gradient of the penalty, which is element-wise, after gradient clipping."""
        for each in slices:
            fisher = self.kept.get(f"{each.name}.fisher")
            if fisher is not None:
                distance = each.value - each.cut(self.kept[each.name])
                each.gradient.add_(each.cut(fisher) * distance, alpha=self.settings.strength)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures the task's Fisher information on rows drawn by the seed."""
        drawn = self.drawn(rows, self.settings.rows, f"fisher/{len(rows)}")
        self._measured = passes.mean_of_gradients(drawn, torch.square)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as SeqLoRA, and updates the kept Fisher information with the task's."""
        before = self.kept
        report, updates = super().finish(model)
        for name, fisher in self._measured.items():
            earlier = before.get(f"{name}.fisher")
            total = fisher if earlier is None else self.settings.decay * earlier + fisher
            self.kept[f"{name}.fisher"] = total
        return report, updates
