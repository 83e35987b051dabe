"""Branches whose A is computed from the inputs of the projections, and frozen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses, of_inputs

if TYPE_CHECKING:
    from codyra_llm.example import Example

LARGE = 1024  # features; of larger inputs the leading directions are computed alone, in a fifth of the time


class DesignedLoRA(Method):
    """A is computed before the task from the second moments of the inputs (`design`) and frozen; only B trains.

    The moments are measured before the task, and again after it, on at most `settings.rows` of its rows. Projections
    that read the same input share their A. For images, inputs of the image tower are measured on pictures, those of the
    text tower on the prompts of the task's classes.

    Attributes:
        found: second moments of the inputs after the task, by projection (`RowPasses.input_moments`).
    """

    needs = Needs(first_task=True)
    found: dict[str, torch.Tensor]
    _designs: dict[str, torch.Tensor]

    def design(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """Returns A [at most rank, in_features] of the projections that share an input.

        Args:
            name: the first of these projections.
            moment: second moment of the input before the task [in_features, in_features], fp64.
        """
        raise NotImplementedError

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes each A from the inputs of the projections before the task."""
        moments = passes.input_moments(self._drawn(rows))
        self._designs = of_inputs(moments, lambda name, moment: self.design(name, moment.double()).float())

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Writes the computed A and freezes it; rows without a direction are zero."""
        designed = self._designs[name].to(layer.A)
        layer.A.zero_()
        layer.A[: len(designed)].copy_(designed)
        layer.A.requires_grad_(False)

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Freezes A."""
        layer.A.requires_grad_(False)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures the second moments of the inputs after the task."""
        self.found = passes.input_moments(self._drawn(rows))

    def _drawn(self, rows: "Sequence[Example]") -> "list[Example]":
        return self.drawn(rows, self.settings.rows, f"inputs/{len(rows)}")


def leading(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the leading eigenvectors [rows, count] of a symmetric matrix and their eigenvalues, in descending order.

    Those of a large matrix are computed by Lanczos iteration, as its whole decomposition takes minutes; the products
    with vectors are computed on the device of the matrix.
    """
    if len(matrix) <= LARGE or 4 * count > len(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors.flip(1)[:, :count], values.flip(0)[:count]
    from scipy.sparse.linalg import LinearOperator, eigsh  # takes half a second

    def product(vector: np.ndarray) -> np.ndarray:
        return (matrix @ torch.from_numpy(vector).to(matrix)).cpu().numpy()

    start = np.random.default_rng(0).standard_normal(len(matrix))  # the same on every rank, and when a task is repeated
    found = eigsh(LinearOperator(matrix.shape, product, dtype=np.float64), count, which="LA", v0=start)
    values, vectors = (torch.from_numpy(each).flip(-1).to(matrix) for each in found)
    return vectors, values
