"""CoDyRA that keeps the components whose benefit to the task outweighs their harm to the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_TWO, AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig
    from codyra_llm.example import Example


@dataclass(frozen=True)
class WeighedSettings:
    """Settings of the comparison of benefit and harm, and the amount of text that they are measured on."""

    harm: float = option(
        1.0, "NLL of the task that a nat of KL on the model's own text may cost; 0: lora", within=AT_LEAST_ZERO
    )
    rows: int = option(64, "rows of the task that the benefit is measured on, at most", within=AT_LEAST_ONE)
    texts: int = option(64, "texts of the model's own that the harm is measured on", within=AT_LEAST_ONE)
    text_length: int = option(96, "tokens of a text, at most", within=AT_LEAST_TWO)


class WeighedCoDyRA(Method):
    """Fixed-rank LoRA; at the end of a task component i is kept if benefit_i > harm * harm_i.

    Both measure the effect of removing the component (g_i from 1 to 0), to second order, with the Fisher information F
    in place of the Hessian. l is the NLL per answer token of the task; d is KL(before || now) per token on text that
    the model generated before the task:

        benefit_i = -dl/dg_i + F_i(l) / 2        by how much l rises
        harm_i    =  dd/dg_i - F_i(d) / 2        by how much d falls

    F_i is the sum over rows of the squared gradient of a row's NLL, divided by the number of tokens. The model's own
    text is a sample from the model before the task, so F_i is the Fisher information of d where the branches are small.
    The published method shrinks gates by the task's loss alone, during training.
    """

    name = "codyra_weighed"
    summary = "LoRA whose components stay where their benefit to the task outweighs their harm to the model"
    Settings = WeighedSettings
    needs = Needs(domains=("text",))
    trains_gates = True
    _texts: "Sequence[Example]" = ()
    _worth: dict[str, torch.Tensor]

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        self._layers: list[CoDyRALinear] = []

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Generates the texts that the harm will be measured on, unless `harm` is 0."""
        if self.settings.harm:
            self._texts = passes.own_texts(self.settings.texts, self.settings.text_length)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Leaves the branch as drawn, and records the layer: `after_training` needs the gradient of its gate."""
        self._layers.append(layer)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures benefit and harm of each component."""
        layers, self._layers, self._worth = self._layers, [], {}
        if not self.settings.harm:
            return
        for layer in layers:
            layer.gate.requires_grad_(True)  # after the last step, so that no optimizer updates it
        chosen = self.drawn(rows, self.settings.rows, f"{self.name}/{self.task}")
        task, information = passes.gradient(chosen), self._information(chosen, passes)
        model, of_texts = passes.divergence_gradient(self._texts), self._information(self._texts, passes)
        self._worth = {
            name: (information[name] / 2 - task[name]) - self.settings.harm * (model[name] - of_texts[name] / 2)
            for name in task
            if name.endswith(".gate")
        }
        for layer in layers:
            layer.gate.requires_grad_(False)

    @staticmethod
    def _information(rows: "Sequence[Example]", passes: RowPasses) -> dict[str, torch.Tensor]:
        tokens = sum(row.learned for row in rows)
        return {name: len(rows) / tokens * mean for name, mean in passes.mean_of_gradients(rows, torch.square).items()}

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Sets the gates of components whose harm outweighs their benefit to zero, then finishes as the base class."""
        with torch.no_grad():
            for name, layer in gated_layers(model) if self._worth else ():
                layer.gate[self._worth[f"{name}.gate"].to(layer.gate.device) <= 0] = 0
        return super().finish(model)
