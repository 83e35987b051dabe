"""O-LoRA: penalizes the overlap of a new branch with those of earlier tasks (arXiv 2310.14152)."""

from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import Penalty
from codyra_llm.options import AT_LEAST_ZERO, option


@dataclass(frozen=True)
class OLoRASettings:
    """Settings of O-LoRA: the two weights of the penalty."""

    orthogonality: float = option(
        0.5, "lambda_1: weight of sum |A_old A^T| over entries and projections", within=AT_LEAST_ZERO
    )
    norms: float = option(0.0, "lambda_2: weight of sum |A|_F + |B|_F over projections", within=AT_LEAST_ZERO)


class OLoRA(Method):
    """Fixed-rank LoRA, merged after each task, with a penalty on the overlap of A with all earlier tasks' A.

    As in the released code, absolute values are summed over entries and projections. Kept: "<projection>.A", the rows
    of the A of all tasks.
    """

    name = "olora"
    summary = "O-LoRA: a penalty on the overlap with earlier tasks' A"
    Settings = OLoRASettings
    needs = Needs(first_task=True)

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns lambda_1 sum |A_old A^T| + lambda_2 (sum |A|_F + |B|_F) and its gradient."""
        value, gradients = 0.0, {}
        for name, (B, A) in branches.items():
            gradient = torch.zeros_like(A)
            old = self.kept.get(f"{name}.A")
            if old is not None:
                overlap = old.to(A) @ A.T  # [rows of all earlier tasks, rank]
                value += self.settings.orthogonality * float(overlap.abs().sum())
                gradient += self.settings.orthogonality * (overlap.sign().T @ old.to(A))
            gradients[f"{name}.A"] = gradient
            if self.settings.norms:
                value += self.settings.norms * float(A.norm() + B.norm())
                gradient += self.settings.norms * _direction(A)
                gradients[f"{name}.B"] = self.settings.norms * _direction(B)
        return value, gradients

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as fixed-rank LoRA, and keeps A."""
        report, updates = super().finish(model)
        for name, (_, A) in updates.items():
            old = self.kept.get(f"{name}.A")
            self.kept[f"{name}.A"] = A.cpu() if old is None else torch.cat([old, A.cpu()])
        return report, updates


def _direction(factor: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of |factor|_F; zero where the norm is zero."""
    norm = factor.norm()
    return factor / norm if norm > 0 else torch.zeros_like(factor)
