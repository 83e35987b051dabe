"""HiDe-LoRA as released for language models: pushes the rows of A apart (after arXiv 2407.05229)."""

from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.hooks import Penalty
from codyra_llm.methods.seqlora import SeqLoRA
from codyra_llm.options import ABOVE_ZERO, AT_LEAST_ZERO, option


@dataclass(frozen=True)
class HiDeSettings:
    """Settings of the contrastive term."""

    strength: float = option(0.5, "lambda: weight of the term; 0: seqlora", within=AT_LEAST_ZERO)
    temperature: float = option(0.8, "that the products of rows are divided by", within=ABOVE_ZERO)


class HiDe(SeqLoRA):
    """SeqLoRA with lambda sum over projections of CE(M M^T / temperature, identity), M = [A_old; A].

    This is the released term, not the method of the paper, which infers a task's identity. In the TRACE results that
    were published A_old is empty, so the term pushes the rows of one A apart and increases their norm. Here A_old
    contains the rows of A after each earlier task. Kept: SeqLoRA's A and B, and A_old as "old/<projection>".
    """

    name = "hide"
    summary = "the released term of HiDe-LoRA: seqlora whose rows of A are pushed apart"
    Settings = HiDeSettings

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns lambda sum CE(M M^T / temperature, identity) and its gradient for A."""
        value = 0.0
        gradients: dict[str, torch.Tensor] = {}
        for name, (_, A) in branches.items() if self.settings.strength else ():
            old = self.kept.get(f"old/{name}", A[:0]).to(A)
            with torch.enable_grad():
                own = A.detach().clone().requires_grad_()
                term = contrast(torch.cat([old, own]), self.settings.temperature)
                (gradient,) = torch.autograd.grad(term, own)
            value += self.settings.strength * float(term.detach())
            gradients[f"{name}.A"] = self.settings.strength * gradient
        return value, gradients

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as SeqLoRA, and appends the rows of A to the kept ones."""
        earlier = {name: rows for name, rows in self.kept.items() if name.startswith("old/")}
        report, updates = super().finish(model)
        for name in updates:
            own = self.kept[f"{name}.A"]
            self.kept[f"old/{name}"] = torch.cat([earlier.get(f"old/{name}", own[:0]), own])
        return report, updates


def contrast(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the mean cross-entropy of each row's products with all rows [rows, features]; the target is itself."""
    return nn.functional.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows), device=rows.device))
