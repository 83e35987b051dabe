"""N-LoRA: updates that are sparse, so that they seldom collide (arXiv 2410.10179)."""

from dataclasses import dataclass

import torch

from codyra_llm.adapter.merging import Deltas
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import Penalty
from codyra_llm.options import AT_LEAST_ZERO, option


@dataclass(frozen=True)
class NLoRASettings:
    """The weight of the penalty."""

    strength: float = option(0.001, "lambda: weight of sum |B A| over entries and projections", within=AT_LEAST_ZERO)


class NLoRA(Method):
    """Fixed-rank LoRA with lambda |B A|_1, as the paper has it.

    The released code takes |A B|_1 instead, an r x r product that exists for square projections alone.
    """

    name = "nlora"
    summary = "N-LoRA: an L1 penalty on the update itself"
    Settings = NLoRASettings

    def penalty(self, branches: Deltas) -> Penalty:
        """lambda sum |B A|, and its gradient: sign(B A) A^T for B, B^T sign(B A) for A."""
        value = 0.0
        gradients: dict[str, torch.Tensor] = {}
        strength = self.settings.strength
        for name, (B, A) in branches.items() if strength else ():
            update = B @ A
            value += strength * float(update.abs().sum())
            sign = torch.sign(update)
            gradients |= {f"{name}.B": strength * (sign @ A.T), f"{name}.A": strength * (B.T @ sign)}
        return value, gradients
