"""InfLoRA: branches that read only input directions that earlier tasks do not use (arXiv 2404.00228)."""

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
    """Settings of InfLoRA: how much of the inputs is protected, and how many rows they are measured on."""

    threshold: float = option(
        0.99, "share of the squared singular values of an input's second moment that a task protects", within=FRACTION
    )
    rows: int = option(200, "rows of a task that inputs are measured on, at most", within=AT_LEAST_ONE)


class InfLoRA(Method):
    """A is computed before the task and frozen, only B trains, so that B A x = 0 for inputs x of earlier tasks.

    A spans the task's inputs outside the protected directions (as in the vision code: the leading directions of the
    rest of their second moment, over sqrt(3)). After the task a second pass protects the directions that its inputs
    use (DualGPM). The threshold is the same for all tasks (released: it rises with the task's number and requires the
    number of tasks). Kept: "<projection>.basis" [in_features, directions] and "<projection>.free": 1 if the basis spans
    the free directions, 0 if the protected ones. Projections that read the same input share theirs. For images, inputs
    of the image tower are measured on pictures, those of the text tower on the prompts of the task's classes.
    """

    name = "inflora"
    summary = "InfLoRA: B alone trains, over inputs that earlier tasks do not use"
    Settings = InfLoRASettings
    needs = Needs(first_task=True)
    _designs: dict[str, torch.Tensor]
    _found: dict[str, torch.Tensor]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes each A from the inputs of the projections before the task."""
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
        self._found = passes.input_moments(self._drawn(rows))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as fixed-rank LoRA, and protects the directions that the task's inputs use."""
        report, updates = super().finish(model)
        threshold = self.settings.threshold
        bases = of_inputs(self._found, lambda name, moment: extended(moment.double(), *self._basis(name), threshold))
        for name, (basis, is_free) in bases.items():
            self.kept |= {f"{name}.basis": basis.float().cpu(), f"{name}.free": torch.tensor(is_free)}
        return report, updates


def design(moment: torch.Tensor, basis: torch.Tensor | None, is_free: bool, rank: int) -> torch.Tensor:
    """Returns A [at most rank, in_features]: the leading directions of a second moment outside the protected ones.

    Args:
        moment: [in_features, in_features].
        basis: [in_features, directions]; spans the protected directions, or the free ones; None: none is protected.
        is_free: whether the basis spans the free directions.
        rank: the largest number of directions.
    """
    left = moment if basis is None else basis @ (basis.T @ moment) if is_free else moment - basis @ (basis.T @ moment)
    return _directions(left)[0][:, :rank].T / 3**0.5


def extended(
    moment: torch.Tensor, basis: torch.Tensor | None, is_free: bool, threshold: float
) -> tuple[torch.Tensor, bool]:
    """Extends the protected directions by those that a task's inputs use (DualGPM); arguments as for `design`.

    Protected directions are added, or free ones removed, until the share `threshold` of the squared singular values of
    the moment is protected. If more than half of all directions are protected, the basis is replaced by its complement,
    the free directions; also after the first task, where the released code would treat the protected directions as the
    free ones.

    Returns:
        (basis, whether it spans the free directions).
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
    """Returns all left singular vectors [rows, rows] and the squared singular values, in descending order.

    They are computed as eigenvectors of M M^T, which takes less than half of the time of an SVD of M.
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1), squares.flip(0).clamp(min=0)
