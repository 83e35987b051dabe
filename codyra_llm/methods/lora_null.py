"""LoRA-Null: branches made of what the weights do where the model's own text is not (arXiv 2503.02659)."""

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
    """What is to be kept, and how strictly."""

    texts: int = option(64, "texts of the model's own whose inputs are kept; 0: lora", within=AT_LEAST_ZERO)
    text_length: int = option(96, "tokens of a text, at most", within=AT_LEAST_TWO)
    freeze_inputs: bool = option(False, "whether A stays as it starts, and B alone trains (the paper's v2)")


class LoRANull(Method):
    """The branch starts as B_0 A_0, the largest part of W U U^T, U the inputs that the model's text uses least.

    The factors are those of the singular value decomposition, the root of the values in each. U are the directions
    that the text does not use, and at least `rank`. B_0 A_0 is taken away
    from W while the branch trains, so the update is B A - B_0 A_0. The paper takes 256 rows of general data for the
    text; here the model writes it itself before each task, and no data is needed. A may leave the space unless it is
    frozen. It needs whole weights, which ZeRO-3 does not give.
    """

    name = "lora_null"
    summary = "LoRA-Null: the branch starts as the weight's part that the model's own text uses least"
    Settings = LoRANullSettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False, whole_updates=True, continues=True, domains=("text",))
    _null: dict[str, torch.Tensor]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures the inputs on text that the model writes itself."""
        if self.settings.texts:
            texts = passes.own_texts(self.settings.texts, self.settings.text_length)
            rank = self.config.adapter.rank
            self._null = of_inputs(passes.input_moments(texts), lambda name, moment: least_used(moment, rank))

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """The weight's part, over unused directions."""
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
        """A may be frozen."""
        layer.A.requires_grad_(not (self.settings.texts and self.settings.freeze_inputs))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """The update is the difference to what the branch has started as."""
        return self.changes(*super().finish(model))


def least_used(moment: torch.Tensor, rank: int) -> torch.Tensor:
    """The eigenvectors [in_features, at least rank] of a second moment [in_features, in_features] that are not used.

    Those of next to no energy, among which there is no order, and at least `rank`.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    return vectors[:, : max(rank, int((values <= UNUSED * values[-1]).sum()))]


def null_part(weight: torch.Tensor, directions: torch.Tensor, rank: int) -> Factors:
    """(B, A) of the nearest B A of a rank to W U U^T, U orthonormal; each has the root of the singular values."""
    U, S, V = torch.linalg.svd(weight @ directions, full_matrices=False)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * (V[:rank] @ directions.T)
