"""A-GEM: removes from a gradient the part that conflicts with the gradient of earlier rows (arXiv 1812.00420)."""

import dataclasses
import random
from dataclasses import dataclass

import torch

from codyra_llm.methods.hooks import RowPasses, Slices
from codyra_llm.methods.memory import MemorySettings, WithMemory
from codyra_llm.options import AT_LEAST_ONE, option


@dataclass(frozen=True)
class AGEMSettings(MemorySettings):
    """Settings of A-GEM: how many rows are kept, and how many of them a step draws."""

    batch: int = option(
        8, "kept rows, of all earlier tasks, whose gradient a step is held against", within=AT_LEAST_ONE
    )


class AGEM(WithMemory):
    """g <- g - (g g_r / g_r g_r) g_r where g g_r < 0; g_r is the gradient of kept rows drawn over all earlier tasks.

    The dot products are over A and B of all projections. g is the clipped gradient of the step's mean loss. Under Adam
    the resulting update is not orthogonal to g_r: the gradient is projected, not the update, as published.
    """

    name = "agem"
    summary = "A-GEM: seqlora whose gradient is projected off that of kept rows where both conflict"
    Settings = AGEMSettings
    needs = dataclasses.replace(WithMemory.needs, domains=("text",))
    _reference: dict[str, torch.Tensor] | None = None

    @property
    def relative_cost(self) -> float:
        """FLOPs of a step relative to fixed-rank LoRA: adds the passes over the rows drawn from earlier tasks."""
        drawn = min(self.settings.batch, sum(map(len, self.memory.values())))
        return 1 + drawn / self.config.train.global_batch_size

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """Computes the gradient of rows of the memory; which rows depends on (seed, task, step) alone."""
        rows = [row for of_task in self.memory.values() for row in of_task]
        if rows:
            count = min(self.settings.batch, len(rows))
            drawn = random.Random(f"{self.config.seed}/agem/{self.task}/{step}").sample(rows, count)
            self._reference = passes.gradient(drawn)

    def before_step(self, slices: Slices) -> None:
        """Projects the gradient where it conflicts with that of the kept rows."""
        if self._reference is None:
            return
        reference = [each.cut(self._reference[each.name]) for each in slices]
        conflict = slices.dot([each.gradient for each in slices], reference)
        if conflict < 0:
            share = conflict / slices.dot(reference, reference)
            for each, other in zip(slices, reference, strict=True):
                each.gradient.sub_(other, alpha=share)
