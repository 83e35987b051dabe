"""MIGU: only the outputs that a task uses most are updated (arXiv 2406.17245)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses
from codyra_llm.options import FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class MIGUSettings:
    """Settings of MIGU: the share of outputs that is not updated."""

    threshold: float = option(
        0.7,
        "share of a projection's outputs, those of least magnitude, that a task leaves as they are",
        within=FRACTION,
    )


class MIGU(Method):
    """From the second task on, the rows of B whose outputs have the least magnitude get no gradient, and stay zero.

    Magnitudes are means of |y| over the tokens of the task's rows, measured on the model before the task, so they are
    the same on all ranks and in all steps; the paper measures them, normalized, in each forward pass. The released code
    path for LoRA cannot run. Kept: "begun", from the first task on.
    """

    name = "migu"
    summary = "MIGU: LoRA that leaves each projection's outputs of least magnitude as they are"
    Settings = MIGUSettings
    needs = Needs(first_task=True)
    _masks: dict[str, torch.Tensor]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Chooses the outputs that are updated; in the first task all are."""
        begun, self.kept = bool(self.kept), {"begun": torch.ones(1)}
        found = passes.output_magnitudes(rows) if begun else {}
        self._masks = {name: mask(magnitudes, self.settings.threshold) for name, magnitudes in found.items()}

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Sets the gradient to zero in the rows of B that are not updated."""
        projection, _, part = name.rpartition(".")
        if part != "B" or projection not in self._masks:
            return gradient
        return gradient * self._masks[projection].to(gradient)[:, None]


def mask(magnitudes: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns 1 for each output [out_features] whose magnitude is at least the quantile `threshold` of all, else 0."""
    return (magnitudes >= magnitudes.quantile(threshold)).to(magnitudes)
