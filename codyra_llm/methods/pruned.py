"""Controls of CoDyRA: plain LoRA that loses components in the end, by chance or by size."""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import Deltas, ModuleRank
from codyra_llm.methods.base import Method
from codyra_llm.options import FRACTION, option


@dataclass(frozen=True)
class PrunedSettings:
    """How many components stay, and which."""

    keep: float = option(0.5, "share of each branch's components that stays; 1: lora", within=FRACTION)
    by: Literal["random", "magnitude"] = option("random", "those drawn by the seed, or those of largest |B_k| |A_k|")


class Pruned(Method):
    """Fixed-rank LoRA whose components are dropped after training: what pruning alone does, without CoDyRA's gates."""

    name = "pruned"
    summary = "control: LoRA that drops components in the end, at random or by magnitude"
    Settings = PrunedSettings
    trains_gates = True

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Sets the gates of what is dropped to zero, and ends the task as ever."""
        with torch.no_grad():
            for name, layer in gated_layers(model):
                dropped = layer.rank - round(self.settings.keep * layer.rank)
                order = torch.argsort(self._worth(name, *layer.factors()), stable=True)
                layer.gate[order[:dropped]] = 0
        return super().finish(model)

    def _worth(self, name: str, B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        """[rank]; the smallest go."""
        if self.settings.by == "magnitude":
            return B.norm(dim=0) * A.norm(dim=1)
        draw = random.Random(f"{self.config.seed}/pruned/{self.task}/{name}")
        return torch.tensor([draw.random() for _ in range(len(A))])
