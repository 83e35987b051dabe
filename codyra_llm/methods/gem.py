"""GEM: the closest gradient that conflicts with none of the earlier tasks' rows (arXiv 1706.08840)."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codyra_llm.methods.hooks import RowPasses, Slices
from codyra_llm.methods.memory import MemorySettings, WithMemory
from codyra_llm.options import AT_LEAST_ZERO, option

EPSILON = 1e-3  # added to the diagonal of the Gram matrix, as released
SWEEPS, TOLERANCE = 100_000, 1e-15


@dataclass(frozen=True)
class GEMSettings(MemorySettings):
    """Settings of GEM: how many rows are kept, and the least weight of their gradients."""

    margin: float = option(0.5, "least weight of each earlier task's gradient once one conflicts", within=AT_LEAST_ZERO)


class GEM(WithMemory):
    """g <- g + G^T v, v = argmin v^T (G G^T + eps I) v / 2 + (G g)^T v with v >= margin, where some g_k g < 0.

    G has a row for each earlier task: the gradient of its kept rows' loss at the current weights, over A and B of all
    projections together (TRACE's GEM solves the problem for each tensor separately, with reversed signs). Gradients are
    clipped first. The quadratic program has as many unknowns as there are earlier tasks, and is the same on every rank.
    """

    name = "gem"
    summary = "GEM: seqlora whose gradient conflicts with that of no earlier task's kept rows"
    Settings = GEMSettings
    needs = dataclasses.replace(WithMemory.needs, domains=("text",))
    _references: list[dict[str, torch.Tensor]]

    @property
    def relative_cost(self) -> float:
        """FLOPs of a step relative to fixed-rank LoRA: adds the passes over all kept rows."""
        return 1 + sum(map(len, self.memory.values())) / self.config.train.global_batch_size

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """Computes the gradient of each earlier task's kept rows."""
        self._references = [passes.gradient(rows) for rows in self.memory.values()]

    def before_step(self, slices: Slices) -> None:
        """Corrects the gradient where it conflicts with that of an earlier task."""
        if not self._references:
            return
        memories = [[each.cut(of_task[each.name]) for each in slices] for of_task in self._references]
        own = [each.gradient for each in slices]
        dots = np.array([slices.dot(own, memory) for memory in memories])
        if (dots >= 0).all():
            return
        gram = np.array([[slices.dot(one, other) for other in memories] for one in memories])
        for weight, memory in zip(weights(gram, dots, self.settings.margin), memories, strict=True):
            for each, part in zip(slices, memory, strict=True):
                each.gradient.add_(part, alpha=float(weight))


def weights(gram: NDArray[np.float64], dots: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Returns v, the minimum of v^T (gram + eps I) v / 2 + dots v with v >= margin, by coordinate descent.

    Args:
        gram: [tasks, tasks]; the dot products of the tasks' gradients.
        dots: [tasks]; their dot products with the step's gradient.
        margin: the lower bound of every entry of v.
    """
    matrix = gram + EPSILON * np.eye(len(dots))
    found = np.full(len(dots), margin, dtype=float)
    for _ in range(SWEEPS):
        before = found.copy()
        for k in range(len(dots)):
            rest = matrix[k] @ found - matrix[k, k] * found[k]
            found[k] = max(margin, -(dots[k] + rest) / matrix[k, k])
        if np.abs(found - before).max() <= TOLERANCE * max(1.0, np.abs(found).max()):
            break
    return found
