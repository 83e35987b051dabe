"""InfLoRA: branches that read only input directions that earlier tasks do not use (arXiv 2404.00228)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.errors import UserError
from codyra_llm.methods import designed
from codyra_llm.methods.hooks import RowPasses, of_inputs
from codyra_llm.options import AT_LEAST_ONE, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example

LOG = logging.getLogger(__name__)

ABSENT = 1e-12  # share of the largest squared singular value, of directions that are rounding errors
GUESS = 64  # directions of a large input that are computed first, as few have 99 % of the squares


@dataclass(frozen=True)
class InfLoRASettings:
    """Settings of InfLoRA: how much of the inputs is protected, and how many rows they are measured on."""

    threshold: float = option(
        0.99, "share of the squared singular values of an input's second moment that a task protects", within=FRACTION
    )
    rows: int = option(200, "rows of a task that inputs are measured on, at most", within=AT_LEAST_ONE)


class InfLoRA(designed.DesignedLoRA):
    """A is computed before the task and frozen, only B trains, so that B A x = 0 for inputs x of earlier tasks.

    A spans the task's inputs outside the protected directions (as in the vision code: the leading directions of the
    rest of their second moment, over sqrt(3)). After the task a second pass protects the directions that its inputs
    use (DualGPM). The threshold is the same for all tasks (released: it rises with the task's number and requires the
    number of tasks). Kept: "<projection>.basis" [in_features, directions] and "<projection>.free": 1 if the basis spans
    the free directions, 0 if the protected ones. Projections that read the same input share theirs.
    """

    name = "inflora"
    summary = "InfLoRA: B alone trains, over inputs that earlier tasks do not use"
    Settings = InfLoRASettings

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes each A from the inputs of the projections before the task.

        Raises:
            UserError: no projection has a direction that is not protected.
        """
        super().before_training(rows, passes)
        full = [name for name, A in self._designs.items() if not len(A)]
        if len(full) == len(self._designs):
            raise UserError(
                f"method {self.name}: all that the projections read is protected by earlier tasks: nothing more can "
                f"be learned; lower {self.name}.threshold"
            )
        if full:
            LOG.warning(
                f"{self.name}: {len(full)} of {len(self._designs)} projections learn nothing from this task, first "
                f"{full[0]}: all that they read is protected by earlier tasks"
            )

    def design(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """Returns the leading directions of the input outside the protected ones."""
        return design(moment, *self._basis(name), self.config.adapter.rank)

    def _basis(self, name: str) -> tuple[torch.Tensor | None, bool]:
        basis = self.kept.get(f"{name}.basis")
        return (None, False) if basis is None else (basis.double(), bool(self.kept[f"{name}.free"]))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as fixed-rank LoRA, and protects the directions that the task's inputs use."""
        report, updates = super().finish(model)
        threshold = self.settings.threshold
        bases = of_inputs(self.found, lambda name, moment: extended(moment.double(), *self._basis(name), threshold))
        for name, (basis, is_free) in bases.items():
            self.kept |= {f"{name}.basis": basis.float().cpu(), f"{name}.free": torch.tensor(is_free)}
        return report, updates


def design(moment: torch.Tensor, basis: torch.Tensor | None, is_free: bool, rank: int) -> torch.Tensor:
    """Returns A [at most rank, in_features]: the leading directions of a second moment outside the protected ones.

    Directions that the inputs do not have are left out: among them could be protected ones.

    Args:
        moment: [in_features, in_features].
        basis: [in_features, directions]; spans the protected directions, or the free ones; None: none is protected.
        is_free: whether the basis spans the free directions.
        rank: the largest number of directions.
    """
    if basis is None:
        directions, _ = _leading(moment, rank)
    elif is_free:
        directions = basis @ _leading(basis.T @ moment, rank)[0]
    else:
        directions, squares = _leading(moment - basis @ (basis.T @ moment), rank)
        directions = directions[:, squares > ABSENT * squares[0]]
    return directions.T / 3**0.5


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
        directions, squares = _leading_with(moment, threshold * total)
        basis = directions[:, : max(1, int((squares.cumsum(0) < threshold * total).sum()))]
    elif is_free:
        within = basis.T @ moment
        directions, squares = _leading(within, len(within))
        left, count = float(squares.sum()), 0
        while count < len(squares) and left >= (1 - threshold) * total:
            left -= float(squares[count])
            count += 1
        return (basis @ directions[:, count:] if count else basis), True
    else:
        rest = moment - basis @ (basis.T @ moment)
        missing = float(rest.square().sum()) - (1 - threshold) * total
        directions, squares = _leading_with(rest, missing)
        count = 0
        while count < min(len(squares), len(basis) - basis.shape[1]) and missing > 0:
            missing -= float(squares[count])
            count += 1
        basis = torch.cat([basis, directions[:, :count]], dim=1)
    if 2 * basis.shape[1] > len(basis):
        return _leading(basis, len(basis))[0][:, basis.shape[1] :], True
    return basis, False


def _leading_with(matrix: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `_leading` of so many directions that their squared singular values sum to `energy`, or of all."""
    if len(matrix) > designed.LARGE:
        directions, squares = _leading(matrix, GUESS)
        if float(squares.sum()) >= energy:
            return directions, squares
    return _leading(matrix, len(matrix))


def _leading(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first left singular vectors [rows, count] and their squared singular values, in descending order.

    They are computed as eigenvectors of M M^T, which takes less than half of the time of an SVD of M.
    """
    vectors, squares = designed.leading(matrix @ matrix.T, count)
    return vectors, squares.clamp(min=0)
