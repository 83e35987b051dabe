"""SeqLoRA: one fixed-rank adapter that all tasks continue to train, as in TRACE's LoRA results."""

from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs


class SeqLoRA(Method):
    """Each task starts with the A and B that the previous task ended with.

    The previous tasks have already merged B_0 A_0, so it is subtracted while the branch trains (dW = B A - B_0 A_0).
    The ledger's entries therefore telescope: their sum is B_T A_T, of the rank of one adapter. Kept: A and B, by
    parameter name.
    """

    name = "seqlora"
    summary = "one fixed-rank adapter continued over all tasks"
    needs = Needs(whole_updates=True, first_task=True, continues=True)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Initializes the branch with the previous task's A and B, and subtracts their product."""
        if f"{name}.A" in self.kept:
            A, B = (self.kept[f"{name}.{part}"].to(layer.A) for part in "AB")
            layer.A.copy_(A)
            layer.B.copy_(B)
            self.take_away(name, layer, B, A)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Keeps A and B; returns the update as the difference from the previous task's: [B, -B_0] [A; A_0]."""
        report, updates = super().finish(model)
        self.kept = {
            f"{name}.{part}": factor.cpu()
            for name, factors in updates.items()
            for part, factor in zip("BA", factors, strict=True)
        }
        return self.changes(report, updates)
