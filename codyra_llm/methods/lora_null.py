"""LoRA-Null: branches start as the weights' part that acts on unused input directions (arXiv 2503.02659)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, Factors, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses, of_inputs
from codyra_llm.options import AT_LEAST_TWO, AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.example import Example

UNUSED = 1e-4  # share of the largest eigenvalue below which a direction counts as unused; fp32 sums are off by 1e-7


@dataclass(frozen=True)
class LoRANullSettings:
    """Settings of LoRA-Null: the texts whose inputs are protected, and whether A is frozen."""

    texts: int = option(64, "texts of the model's own whose inputs are kept; 0: lora", within=AT_LEAST_ZERO)
    text_length: int = option(96, "tokens of a text, at most", within=AT_LEAST_TWO)
    freeze_inputs: bool = option(False, "whether A stays as it starts, and B alone trains (the paper's v2)")


class LoRANull(Method):
    """The branch starts as B_0 A_0, the best rank-r approximation of W U U^T, U the least used input directions.

    B_0 and A_0 come from the singular value decomposition, with the square root of the singular values in each. U are
    the input directions that text of the model does not use, and at least `rank` of them. B_0 A_0 is subtracted from W
    while the branch trains, so the update is B A - B_0 A_0. The paper uses 256 rows of general data as the text; here
    the model generates it before each task, so no data is needed. A may leave the span of U unless it is frozen. The
    method needs whole weights, so ZeRO-3 is not supported.
    """

    name = "lora_null"
    summary = "LoRA-Null: the branch starts as the weight's part that the model's own text uses least"
    Settings = LoRANullSettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False, whole_updates=True, continues=True, domains=("text",))
    _null: dict[str, torch.Tensor]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Finds the least used input directions on texts that the model generates."""
        if self.settings.texts:
            texts = passes.own_texts(self.settings.texts, self.settings.text_length)
            rank = self.config.adapter.rank
            self._null = of_inputs(passes.input_moments(texts), lambda name, moment: least_used(moment, rank))

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Initializes the branch with the weight's part on the least used directions, and subtracts it from W."""
        if not self.settings.texts:
            return
        weight: torch.Tensor = layer.base.weight  # type: ignore[assignment]
        directions = self._null[name].to(weight.device)
        B, A = (factor.to(layer.A) for factor in null_part(weight.double(), directions, layer.rank))
        layer.A.zero_()
        layer.A[: len(A)].copy_(A)
        layer.B[:, : len(A)].copy_(B)
        layer.A.requires_grad_(not self.settings.freeze_inputs)
        self.take_away(name, layer, layer.B.detach().clone(), layer.A.detach().clone())

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Freezes A if `freeze_inputs` is set."""
        layer.A.requires_grad_(not (self.settings.texts and self.settings.freeze_inputs))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Returns the update as the difference from the initial branch, B A - B_0 A_0."""
        return self.changes(*super().finish(model))


def least_used(moment: torch.Tensor, rank: int) -> torch.Tensor:
    """Returns the least used eigenvectors [in_features, at least rank] of a second moment [in_features, in_features].

    These are all with next to no energy (`UNUSED`), in no meaningful order, and at least `rank`.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    return vectors[:, : max(rank, int((values <= UNUSED * values[-1]).sum()))]


def null_part(weight: torch.Tensor, directions: torch.Tensor, rank: int) -> Factors:
    """Returns (B, A) of the best rank-`rank` approximation of W U U^T, with the root of the singular values in each.

    Args:
        weight: W [out_features, in_features].
        directions: U [in_features, directions], orthonormal.
        rank: rank of the approximation.
    """
    U, S, V = torch.linalg.svd(weight @ directions, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * (V[:rank] @ directions.T)
