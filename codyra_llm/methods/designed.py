"""Branches whose A is computed from the inputs of the projections, and frozen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses, of_inputs

if TYPE_CHECKING:
    from codyra_llm.example import Example


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
