"""SLAO: one adapter, continued from an orthogonalized A, whose B is averaged over tasks (arXiv 2512.23017)."""

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank, difference
from codyra_llm.methods.base import Method, Needs


class SLAO(Method):
    """A task starts with the last task's B and, for A, the Q of its A^T; then A_m <- A, B_m += (B - B_m) / sqrt(t).

    The model that is evaluated is W_0 + B_m A_m. While a task trains, the merged adapter is subtracted
    (dW = B A - B_m A_m), so the ledger's entries telescope. The weight 1 / sqrt(t) is the form in which the paper is
    cited; no code was published. Kept: "<projection>.A", ".B" of the last task, ".merged" B_m, and the number of tasks.
    """

    name = "slao"
    summary = "SLAO: one continued adapter whose B is averaged over tasks"
    needs = Needs(whole_updates=True, first_task=True, continues=True)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Initializes the branch with the last task's B and an orthonormalized A, and subtracts the merged adapter."""
        if f"{name}.A" not in self.kept:
            return
        A, B, merged = (self.kept[f"{name}.{part}"].to(layer.A) for part in ("A", "B", "merged"))
        layer.A.copy_(torch.linalg.qr(A.T)[0].T)
        layer.B.copy_(B)
        self.take_away(name, layer, merged, A)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Updates B_m and A_m; returns the update as their difference from before: [B_m', -B_m] [A; A_m]."""
        report, updates = super().finish(model)
        tasks = self.kept.get("tasks", torch.zeros((), dtype=torch.int64)) + 1
        changes: Deltas = {}
        kept: dict[str, torch.Tensor] = {"tasks": tasks}
        for name, (B, A) in updates.items():
            merged = B
            changes[name] = B, A
            if f"{name}.A" in self.kept:
                old_A, old = (self.kept[f"{name}.{part}"].to(B) for part in ("A", "merged"))
                merged = old + (B - old) / float(tasks) ** 0.5
                changes[name] = difference((merged, A), (old, old_A))
            kept |= {f"{name}.A": A.cpu(), f"{name}.B": B.cpu(), f"{name}.merged": merged.cpu().clone()}
        self.kept = kept
        return report, changes
