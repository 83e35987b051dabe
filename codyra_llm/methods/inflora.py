"""InfLoRA: branches that read only what earlier tasks' inputs do not use (arXiv 2404.00228)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses, of_inputs
from codyra_llm.options import AT_LEAST_ONE, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class InfLoRASettings:
    """How much of the inputs is protected."""

    threshold: float = option(
        0.99, "share of the squared singular values of an input's second moment that a task protects", within=FRACTION
    )
    rows: int = option(200, "rows of a task that inputs are measured on, at most", within=AT_LEAST_ONE)


class InfLoRA(Method):
    """A is designed and frozen, B alone trains, so that B A x = 0 for inputs x of earlier tasks.

    A is the span of the task's inputs without what is protected (vision code: the leading directions of what is left of
    their second moment, over sqrt(3)). After the task a second pass adds the directions that its inputs use (DualGPM).
    The threshold is the same for all tasks (released: it rises with the task's number and needs to know the last one).
    Kept: "<projection>.basis" [in_features, directions] and "<projection>.free": 1 where the basis is of what is free.
    Projections that read the same input share theirs. Of images, inputs of one tower are measured on pictures, those of
    the other on the prompts of the task's classes.
    """

    name = "inflora"
    summary = "InfLoRA: B alone trains, over inputs that earlier tasks do not use"
    Settings = InfLoRASettings
    needs = Needs(first_task=True)
    _designs: dict[str, torch.Tensor]
    _found: dict[str, torch.Tensor]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Designs each A on the inputs of the model as the task finds it."""
        moments = passes.input_moments(self._drawn(rows))
        rank = self.config.adapter.rank
        self._designs = of_inputs(
            moments, lambda name, moment: design(moment.double(), *self._basis(name), rank).float()
        )

    def _drawn(self, rows: "Sequence[Example]") -> "list[Example]":
        return self.drawn(rows, self.settings.rows, f"inputs/{len(rows)}")

    def _basis(self, name: str) -> tuple[torch.Tensor | None, bool]:
        basis = self.kept.get(f"{name}.basis")
        return (None, False) if basis is None else (basis.double(), bool(self.kept[f"{name}.free"]))

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """The designed A, frozen; a direction that is not there is zero."""
        designed = self._designs[name].to(layer.A)
        layer.A.zero_()
        layer.A[: len(designed)].copy_(designed)
        layer.A.requires_grad_(False)

    def size_branch(self, layer: CoDyRALinear) -> None:
        """A does not train."""
        layer.A.requires_grad_(False)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """The second moments of the inputs of the model that has learned the task."""
        self._found = passes.input_moments(self._drawn(rows))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """As fixed-rank LoRA, and the directions that the task's inputs use are protected."""
        report, updates = super().finish(model)
        threshold = self.settings.threshold
        bases = of_inputs(self._found, lambda name, moment: extended(moment.double(), *self._basis(name), threshold))
        for name, (basis, is_free) in bases.items():
            self.kept |= {f"{name}.basis": basis.float().cpu(), f"{name}.free": torch.tensor(is_free)}
        return report, updates


def design(moment: torch.Tensor, basis: torch.Tensor | None, is_free: bool, rank: int) -> torch.Tensor:
    """A [at most rank, in_features]: the leading directions of a second moment outside of what is protected.

    Args:
        moment: [in_features, in_features]. basis: [in_features, directions] of what is protected or, `is_free`, of what
            is not; None: nothing is protected.
    """
    left = moment if basis is None else basis @ (basis.T @ moment) if is_free else moment - basis @ (basis.T @ moment)
    return _directions(left)[0][:, :rank].T / 3**0.5


def extended(
    moment: torch.Tensor, basis: torch.Tensor | None, is_free: bool, threshold: float
) -> tuple[torch.Tensor, bool]:
    """DualGPM: the basis with the directions that a task's inputs use; arguments as `design`'s.

    Protected directions are added, or free ones removed, until the share `threshold` of the squared singular values of
    the moment is protected. A protected basis of more than half the width is given as its complement, which is free;
    after the first task too, where the released code would take the protected directions for the free ones.
    """
    total = float(moment.square().sum())
    if basis is None:
        directions, squares = _directions(moment)
        shares = squares.cumsum(0) / total
        basis = directions[:, : max(1, int((shares < threshold).sum()))]
    elif is_free:
        directions, squares = _directions(basis @ (basis.T @ moment))
        left, count = float(squares.sum()) / total, 0
        while count < basis.shape[1] and left >= 1 - threshold:
            left -= float(squares[count]) / total
            count += 1
        if not count:
            return basis, True
        taken = directions[:, :count]
        rest, _ = _directions(basis - taken @ (taken.T @ basis))
        return rest[:, : basis.shape[1] - count], True
    else:
        directions, squares = _directions(moment - basis @ (basis.T @ moment))
        covered, count = 1 - float(squares.sum()) / total, 0
        while count < len(squares) - basis.shape[1] and covered < threshold:
            covered += float(squares[count]) / total
            count += 1
        basis = torch.cat([basis, directions[:, :count]], dim=1)
    if 2 * basis.shape[1] > len(basis):
        return _directions(basis)[0][:, basis.shape[1] :], True
    return basis, False


def _directions(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All left singular vectors [rows, rows], and the squares of their singular values, from the largest on.

    From the eigenvectors of M M^T, which take less than half of the time that a decomposition of M takes.
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1), squares.flip(0).clamp(min=0)
