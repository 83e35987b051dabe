"""Two methods that use the hooks which no method of the package uses yet; `register` adds them to the registry."""

import torch

from codyra_llm.data.encode import Example
from codyra_llm.methods import METHODS
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import RowGradients, Slices


class Distilled(Method):
    """LoRA with KL(before || now) at the answer tokens, and a change of the gradients that is undone by Adam."""

    name = "distilled"
    has_teacher = True

    def output_loss(
        self, logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        assert teacher is not None and not teacher.requires_grad and teacher.shape == logits.shape
        now, before = logits.log_softmax(-1), teacher.log_softmax(-1)
        return 5 * (before.exp() * (before - now)).sum()

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 0.5


class AGEM(Method):
    """A-GEM (arXiv 1812.00420): a gradient that conflicts with that of the memory loses the part that does."""

    name = "agem"

    def begin_step(self, step: int, gradients: RowGradients) -> None:
        self.reference = gradients.of(FIRST_ROWS)

    def before_step(self, slices: Slices) -> None:
        reference = [each.cut(self.reference[each.name]) for each in slices]
        own = [each.gradient for each in slices]
        conflict = slices.dot(own, reference)
        if conflict < 0:
            share = conflict / slices.dot(reference, reference)
            for each, other in zip(slices, reference, strict=True):
                each.gradient.sub_(other, alpha=share)
            assert abs(slices.dot(own, reference)) < 1e-3 * abs(conflict)


FIRST_ROWS = [Example([5, 6, 7], [8, 9]), Example([9, 8], [300]), Example([11, 40, 2, 7], [60, 61, 2])]


def register() -> None:
    METHODS.update({method.name: method for method in (Distilled, AGEM)})
