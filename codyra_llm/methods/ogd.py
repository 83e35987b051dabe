"""OGD: updates that do not change the outputs on kept rows, to first order (arXiv 1910.07104)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.hooks import RowPasses, Slices
from codyra_llm.methods.memory import MemorySettings, WithMemory
from codyra_llm.options import option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class OGDSettings(MemorySettings):
    """Settings of OGD: how many directions are protected, and what is projected."""

    project: Literal["update", "gradient"] = option(
        "update", "what is projected: Adam's update, or the gradient, whose projection Adam's scaling leaves again"
    )


class OGD(WithMemory):
    """Removes from each update its part in the span of earlier rows' gradients: u <- u - Q Q^T u.

    A row's direction is the gradient of the log-likelihood of its answer over A and B of all projections, at their
    values after its task. The vectors over all tensors are orthonormal, not their parts in each tensor. Kept:
    "basis/<parameter>" [directions, *shape], besides what SeqLoRA keeps; each task adds at most `rows` directions.
    """

    name = "ogd"
    summary = "OGD: seqlora whose updates are orthogonal to the gradients of kept rows"
    Settings = OGDSettings
    _directions: list[dict[str, torch.Tensor]]
    _before: list[torch.Tensor]

    @property
    def memory(self) -> "dict[str, list[Example]]":
        """Empty: directions are kept, not rows."""
        return {}

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes the gradient direction of each sampled row."""
        super().after_training(rows, passes)
        self._directions = [passes.gradient([row]) for row in self._new]
        self._new = []

    def before_step(self, slices: Slices) -> None:
        """Projects the gradient, or stores the values that Adam will update."""
        if self.settings.project == "gradient":
            self._project(slices, [each.gradient for each in slices])
        else:
            self._before = [each.value.clone() for each in slices]

    def after_step(self, slices: Slices) -> None:
        """Projects the update, unless the gradient was projected."""
        if self.settings.project == "update":
            updates = [each.value - before for each, before in zip(slices, self._before, strict=True)]
            self._project(slices, updates)
            for each, before, update in zip(slices, self._before, updates, strict=True):
                each.value.copy_(before + update)

    def _project(self, slices: Slices, vector: list[torch.Tensor]) -> None:
        bases = [self.kept.get(f"basis/{each.name}") for each in slices]
        if not bases or bases[0] is None:
            return
        for number in range(len(bases[0])):
            parts = [each.cut(basis[number]) for each, basis in zip(slices, bases, strict=True)]  # type: ignore[index]
            share = slices.dot(vector, parts)
            for own, part in zip(vector, parts, strict=True):
                own.sub_(part, alpha=share)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as SeqLoRA, and keeps the directions of the task, made orthonormal to all earlier ones."""
        report, updates = super().finish(model)
        if self._directions:
            names = list(self._directions[0])
            old = (
                self._flat([self.kept[f"basis/{name}"] for name in names]) if f"basis/{names[0]}" in self.kept else None
            )
            fresh = self._flat([torch.stack([each[name] for each in self._directions]) for name in names])
            basis, start = extended(old, fresh).float(), 0
            for name in names:
                shape = self._directions[0][name].shape
                values = basis[:, start : start + shape.numel()]
                self.kept[f"basis/{name}"] = values.reshape(-1, *shape).cpu()
                start += shape.numel()
        return report, updates

    @staticmethod
    def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def extended(basis: torch.Tensor | None, vectors: torch.Tensor) -> torch.Tensor:
    """Returns orthonormal rows that span the basis and the vectors, the basis first; dependent vectors add no row.

    Args:
        basis: [directions, values], orthonormal.
        vectors: [more, values].
    """
    vectors = vectors.double()
    rows = [] if basis is None else list(basis.double())
    for vector in vectors:
        size = vector.norm()
        for _ in range(2):  # a second pass removes rounding errors of the first
            for row in rows:
                vector = vector - (row @ vector) * row
        if vector.norm() > 1e-6 * size:
            rows.append(vector / vector.norm())
    return torch.stack(rows) if rows else vectors[:0]
