"""Methods that use hooks in ways no method of the package does; `register` adds them to the registry."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.methods.agem import AGEM, AGEMSettings
from codyra_llm.methods.base import Method
from codyra_llm.methods.gem import GEM, GEMSettings
from codyra_llm.methods.hooks import AnswerTokens, RowPasses


class Distilled(Method):
    """LoRA with KL(before || now) at the answer tokens, and a scaling of the gradients, to which Adam is invariant."""

    name = "distilled"
    has_teacher = True

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        assert teacher is not None and not teacher.requires_grad and teacher.shape == logits.shape
        now, before = logits.log_softmax(-1), teacher.log_softmax(-1)
        return 5 * (before.exp() * (before - now)).sum()

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 0.5


class OpposedAGEM(AGEM):
    """A-GEM with its reference gradient negated, so that steps conflict with it."""

    name = "agem_opposed"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.settings = AGEMSettings(rows=3, batch=4)

    def begin_step(self, step: int, passes: RowPasses) -> None:
        super().begin_step(step, passes)
        if self._reference:
            self._reference = {name: -gradient for name, gradient in self._reference.items()}


class OpposedGEM(GEM):
    """GEM with its reference gradients negated."""

    name = "gem_opposed"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.settings = GEMSettings(rows=3)

    def begin_step(self, step: int, passes: RowPasses) -> None:
        super().begin_step(step, passes)
        self._references = [{name: -value for name, value in each.items()} for each in self._references]


class Blocked(Method):
    """LoRA with a frozen A without the directions that the task's inputs use most (after InfLoRA, 2404.00228)."""

    name = "blocked"

    def before_training(self, rows: Sequence[Example], passes: RowPasses) -> None:
        moments = passes.input_moments(rows[:7])
        self.directions = {name: torch.linalg.eigh(moment)[1][:, -3:] for name, moment in moments.items()}
        assert len({moment.data_ptr() for moment in moments.values()}) < len(moments)  # q, k and v share inputs

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        layer.blocked_inputs = self.directions[name]
        layer.blocked_outputs = torch.eye(layer.out_features)[:, :2]
        layer.A.requires_grad_(False)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            assert (A @ self.directions[name]).abs().max() < 1e-5
            assert not B[:2].any() and B[2:].any()
        return report, updates


def register() -> None:
    METHODS.update({method.name: method for method in (Distilled, OpposedAGEM, OpposedGEM, Blocked)})
