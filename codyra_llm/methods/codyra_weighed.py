"""CoDyRA whose components stay where what they do for the task outweighs what they do to the model itself."""

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
    """What is weighed against what, and on how much text."""

    harm: float = option(
        1.0, "NLL of the task that a nat of KL on the model's own text may cost; 0: lora", within=AT_LEAST_ZERO
    )
    rows: int = option(64, "rows of the task that the benefit is measured on, at most", within=AT_LEAST_ONE)
    texts: int = option(64, "texts of the model's own that the harm is measured on", within=AT_LEAST_ONE)
    text_length: int = option(96, "tokens of a text, at most", within=AT_LEAST_TWO)


class WeighedCoDyRA(Method):
    """Fixed-rank LoRA; at the end of a task component i stays where benefit_i > harm * harm_i.

    Both are what removing it, g_i from 1 to 0, changes, to second order with Fisher information F in the place of the
    Hessian; l is the NLL per answer token of the task, d is KL(before || now) per token on text that the model wrote
    before the task:

        benefit_i = -dl/dg_i + F_i(l) / 2        by how much l rises
        harm_i    =  dd/dg_i - F_i(d) / 2        by how much d falls

    F_i is the mean over rows of the squared gradient of a row's NLL, per token; the model's own text is a sample of
    what it was, so that this is the Fisher information of d where the branches are small. The published method shrinks
    gates by the task alone, while it trains.
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
        """Lets the model write what the harm will be measured on."""
        if self.settings.harm:
            self._texts = passes.own_texts(self.settings.texts, self.settings.text_length)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """As drawn; its gate will be asked for a gradient."""
        self._layers.append(layer)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures benefit and harm of each component."""
        layers, self._layers, self._worth = self._layers, [], {}
        if not self.settings.harm:
            return
        for layer in layers:
            layer.gate.requires_grad_(True)  # after the last step, so that no optimizer knows it
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
        """Sets the gates of what does more harm than good to zero, and ends the task as ever."""
        with torch.no_grad():
            for name, layer in gated_layers(model) if self._worth else ():
                layer.gate[self._worth[f"{name}.gate"].to(layer.gate.device) <= 0] = 0
        return super().finish(model)
