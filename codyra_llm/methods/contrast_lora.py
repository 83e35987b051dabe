"""Branches that read the directions in which a task's inputs differ from all inputs before."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.designed import DesignedLoRA, leading
from codyra_llm.methods.hooks import RowPasses, of_inputs
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_TWO, AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.example import Example

LONGEST = 4.0  # length of a row of A, at most, relative to that of a random one
ABSENT = 1e-9  # share of an input's energy, of directions that are rounding errors


@dataclass(frozen=True)
class ContrastSettings:
    """Settings of contrastive branches: the weight of earlier inputs, and what inputs are measured on."""

    weight: float = option(
        3.0, "weight of earlier inputs against the task's own; 0: its principal components", within=AT_LEAST_ZERO
    )
    rows: int = option(200, "rows of a task that inputs are measured on, at most", within=AT_LEAST_ONE)
    texts: int = option(
        64, "texts of the model's own whose inputs count as those of an earlier task", within=AT_LEAST_ZERO
    )
    text_length: int = option(64, "tokens of a text, at most", within=AT_LEAST_TWO)


class ContrastLoRA(DesignedLoRA):
    """A reads the contrastive principal components of the task's inputs against all earlier ones, and is frozen.

    These are the leading eigenvectors u of M - weight P (contrastive PCA, arXiv 1709.06716), where M is the second
    moment of the task's inputs and P the sum of those of the earlier tasks' inputs and of texts that the model
    generated before the first task. What a branch adds for earlier inputs is B A x, and their energy along u is
    u^T P u. Directions with very large activations, which all inputs of a language model share, are not among the
    components, since P has as much of them as M; the share of energy that InfLoRA protects consists of these alone.

    Each row of A is scaled so that the task's inputs have the same energy along it, that of a row drawn at random:
    tr(M) / (3 in_features) per token, but at most four times as long as that one. Without this, tasks whose inputs are
    much like earlier ones would be learned much more slowly. Kept: "<projection>.past", P [in_features, in_features],
    once for projections that read the same input.
    """

    name = "contrast_lora"
    summary = "B alone trains, over directions in which a task's inputs differ from earlier ones"
    Settings = ContrastSettings
    needs = dataclasses.replace(DesignedLoRA.needs, domains=("text",))

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures the model's own texts before the first task, and computes each A."""
        if self.settings.texts and not self.kept:
            texts = passes.own_texts(self.settings.texts, self.settings.text_length)
            self._add(passes.input_moments(texts))
        super().before_training(rows, passes)

    def design(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """Returns the scaled contrastive components of the input."""
        past = self.kept.get(_past(name))
        earlier = torch.zeros_like(moment) if past is None else past.to(moment)
        return contrast(moment, self.settings.weight * earlier, self.config.adapter.rank)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as fixed-rank LoRA, and adds the task's inputs to the earlier ones."""
        result = super().finish(model)
        self._add(self.found)
        return result

    def _add(self, moments: dict[str, torch.Tensor]) -> None:
        def add(name: str, moment: torch.Tensor) -> None:
            past = self.kept.get(_past(name))
            self.kept[_past(name)] = moment.cpu() if past is None else past + moment.cpu()

        of_inputs(moments, add)


def _past(name: str) -> str:
    return f"{name}.past"


def contrast(moment: torch.Tensor, earlier: torch.Tensor, rank: int) -> torch.Tensor:
    """Returns A [at most rank, in_features]: the leading eigenvectors of the difference of two second moments, scaled.

    Directions that the task's inputs do not have are left out.

    Args:
        moment: M, the second moment of the task's inputs [in_features, in_features], fp64.
        earlier: that of earlier inputs, times its weight.
        rank: the largest number of directions.
    """
    total = moment.trace()
    directions, _ = leading(moment - earlier, rank)
    energy = (directions * (moment @ directions)).sum(0)
    used = energy > ABSENT * total
    directions, energy = directions[:, used], energy[used]
    length = (total / len(moment) / energy).sqrt().clamp(max=LONGEST)
    return (directions * length).T / 3**0.5
