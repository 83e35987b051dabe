"""SeqLoRA: one fixed-rank adapter that all tasks continue, as TRACE's LoRA rows are trained."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merge import Deltas, Factors, ModuleRank, difference, module_rank
from codyra_llm.methods.base import Method, Needs


class SeqLoRA(Method):
    """Each task starts with the A and B that the task before ended with.

    What that task has merged already is taken away again while the branch trains (dW = B A - B_0 A_0), so the ledger's
    entries telescope: their sum is B_T A_T, of the rank of one adapter. Kept: A and B, by parameter name.
    """

    name = "seqlora"
    summary = "one fixed-rank adapter continued over all tasks"
    needs = Needs(whole_updates=True, first_task=True, continues=True)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Continues the last task's branch."""
        if f"{name}.A" in self.kept:
            A, B = (self.kept[f"{name}.{part}"].to(layer.A) for part in "AB")
            layer.A.copy_(A)
            layer.B.copy_(B)
            self.take_away(layer, B, A)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """The update is the difference to the last task's: [B, -B_0] [A; A_0]."""
        report, updates = super().finish(model)
        starts = {
            name: (self.kept[f"{name}.B"].to(A), self.kept[f"{name}.A"].to(A))
            for name, (_, A) in updates.items()
            if f"{name}.A" in self.kept
        }
        self.kept = {
            f"{name}.{part}": factor.cpu()
            for name, factors in updates.items()
            for part, factor in zip("BA", factors, strict=True)
        }
        return from_starts(report, updates, starts)


def of_change(kept: ModuleRank, B: torch.Tensor, A: torch.Tensor) -> ModuleRank:
    """What is reported of a projection whose update is a change B A: norm and bound are the change's."""
    change = module_rank(kept.name, B, A, kept.initial_rank)
    return dataclasses.replace(kept, norm=change.norm, bound=change.bound)


def from_starts(
    report: list[ModuleRank], updates: Deltas, starts: Mapping[str, Factors]
) -> tuple[list[ModuleRank], Deltas]:
    """What `Method.finish` gives, as differences from what branches have started as; where none is known, as it is."""
    changes = {
        name: difference(factors, starts[name]) if name in starts else factors for name, factors in updates.items()
    }
    return [of_change(kept, *changes[kept.name]) for kept in report], changes
