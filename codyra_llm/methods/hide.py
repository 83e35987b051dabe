"""What was released as HiDe-LoRA for language models: rows of A that are pushed apart (after arXiv 2407.05229)."""

from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.hooks import Penalty
from codyra_llm.methods.seqlora import SeqLoRA
from codyra_llm.options import ABOVE_ZERO, AT_LEAST_ZERO, option


@dataclass(frozen=True)
class HiDeSettings:
    """The contrastive term."""

    strength: float = option(0.5, "lambda: weight of the term; 0: seqlora", within=AT_LEAST_ZERO)
    temperature: float = option(0.8, "that the products of rows are divided by", within=ABOVE_ZERO)


class HiDe(SeqLoRA):
    """SeqLoRA with lambda sum over projections of CE(M M^T / 0.8, identity), M = the rows of [A_old; A].

    This is the released term, not the method of the paper, which infers a task's identity: in the published TRACE rows
    A_old is empty, and the term pushes the rows of one A apart and grows their norm. Here A_old are the rows of A after
    each earlier task. Kept: SeqLoRA's A and B, and "old/<projection>".
    """

    name = "hide"
    summary = "the released term of HiDe-LoRA: seqlora whose rows of A are pushed apart"
    Settings = HiDeSettings

    def penalty(self, branches: Deltas) -> Penalty:
        """lambda sum CE(M M^T / temperature, identity), and its gradient for A."""
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
        """As SeqLoRA; the rows of A are kept."""
        earlier = {name: rows for name, rows in self.kept.items() if name.startswith("old/")}
        report, updates = super().finish(model)
        for name in updates:
            own = self.kept[f"{name}.A"]
            self.kept[f"old/{name}"] = torch.cat([earlier.get(f"old/{name}", own[:0]), own])
        return report, updates


def contrast(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """The cross-entropy of each row's products with all rows [rows, features], whose right answer is itself."""
    return nn.functional.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows), device=rows.device))
