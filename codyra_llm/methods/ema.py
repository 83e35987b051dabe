"""A control: the update is its exponential moving average over the steps of the task, not its last value."""

from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import Deltas, Factors, ModuleRank, of_change
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import Penalty
from codyra_llm.options import DECAY, option


@dataclass(frozen=True)
class EMASettings:
    """Settings of the average: its decay."""

    decay: float = option(0.99, "what is left of the average after a step; 0: the last update, lora", within=DECAY)


class EMA(Method):
    """M_s = decay M_{s-1} + (1 - decay) B_s A_s after each step; the update is M_S / (1 - decay^S).

    The products are averaged, not the factors: the product of mean factors is not the mean of products. Averages are
    dense, as large as the projections, in fp32, and so are the ledger's entries. The average does not shrink the
    update: the division makes the weights of all steps sum to one.
    """

    name = "ema"
    summary = "control: the update is its exponential average over the task's steps"
    Settings = EMASettings
    needs = Needs(whole_updates=True)

    def penalty(self, branches: Deltas) -> Penalty:
        """Adds the update after the previous step to the average; returns no penalty."""
        if self.settings.decay and any(bool(B.any()) for B, _ in branches.values()):  # before the first step none is
            self._add(branches)
        return 0.0, {}

    @torch.no_grad()
    def _add(self, branches: Deltas) -> None:
        decay, gathered = self.settings.decay, self.gathered
        for name, (B, A) in branches.items():
            earlier = gathered.get(name)
            update = (1 - decay) * (B @ A)
            gathered[name] = update if earlier is None else update.add_(earlier.to(update), alpha=decay)
        gathered["steps"] = gathered.get("steps", torch.zeros(())) + 1

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Returns the averaged updates, dense: A is the identity; with decay 0, the last updates."""
        branches = {name: layer.factors() for name, layer in gated_layers(model)}
        report, updates = super().finish(model)
        if not self.settings.decay:
            return report, updates
        self._add(branches)
        share = 1 - self.settings.decay ** int(self.gathered["steps"])
        averages: dict[str, Factors] = {
            name: (self.gathered[name] / share, torch.eye(A.shape[1], dtype=A.dtype, device=A.device))
            for name, (_, A) in updates.items()
        }
        self.gathered = {}
        return [of_change(kept, *averages[kept.name]) for kept in report], averages
