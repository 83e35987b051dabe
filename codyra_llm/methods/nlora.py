"""N-LoRA: sparse updates, which rarely overlap with those of other tasks (arXiv 2410.10179)."""

from dataclasses import dataclass

import torch

from codyra_llm.adapter.merging import Deltas
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import Penalty
from codyra_llm.options import AT_LEAST_ZERO, option


@dataclass(frozen=True)
class NLoRASettings:
    """Settings of N-LoRA: the weight of the penalty."""

    strength: float = option(0.001, "lambda: weight of sum |B A| over entries and projections", within=AT_LEAST_ZERO)


class NLoRA(Method):
    """Fixed-rank LoRA with the penalty lambda |B A|_1, as in the paper.

    The released code uses |A B|_1 instead, an r x r product that only exists for square projections.
    """

    name = "nlora"
    summary = "N-LoRA: an L1 penalty on the update itself"
    Settings = NLoRASettings

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns lambda sum |B A| and its gradient: lambda sign(B A) A^T for B, lambda B^T sign(B A) for A."""
        value = 0.0
        gradients: dict[str, torch.Tensor] = {}
        strength = self.settings.strength
        for name, (B, A) in branches.items() if strength else ():
            update = B @ A
            value += strength * float(update.abs().sum())
            sign = torch.sign(update)
            gradients |= {f"{name}.B": strength * (sign @ A.T), f"{name}.A": strength * (B.T @ sign)}
        return value, gradients
