"""OSFT: a weight's smaller singular triples train, its leading ones stay as they are (arXiv 2504.07097)."""

import dataclasses
from dataclasses import dataclass

from torch import nn

from codyra_llm.adapter import CoDyRAConfig
from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.osft_lora import block_leading
from codyra_llm.options import SHARE, option


@dataclass(frozen=True)
class OSFTSettings:
    """How much of each weight trains."""

    train: float = option(0.5, "share of the singular triples, from the smallest on, that train", within=SHARE)


class OSFT(Method):
    """W = U_h S_h V_h + U_l S_l V_l: U_l, S_l and V_l train, within the space that U_h and V_h leave.

    The gated branch is U_l diag(S_l) V_l, and what it starts as is taken away from the weight: the update is the
    difference. The projections are part of the forward, which no optimizer can leave: one of the two released forms
    projects gradients alone, and AdamW leaks; the other projects parameters after each step, and comes to the same
    numbers as this. The decomposition is made anew for each task. It trains about as many values as full fine-tuning,
    needs its small learning rates, and whole weights, which ZeRO-3 does not give.
    """

    name = "osft"
    summary = "OSFT: the smaller singular triples of each weight train, off the leading ones"
    Settings = OSFTSettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False, whole_updates=True, continues=True)

    @property
    def adapter(self) -> CoDyRAConfig:
        """Gates that train, and never meet a threshold."""
        return dataclasses.replace(
            self.config.adapter,
            train_gates=True,
            gate_init="normal",
            threshold_mode="budget",
            threshold_strength=None,
            gate_learning_rate=None,
        )

    @property
    def relative_cost(self) -> float:
        """The branch's products, with their weights' gradients, and those of what is taken away."""
        return 1 + 5 * self.settings.train

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """The weight's smaller triples as the branch."""
        U, S, V = block_leading(layer, 1 - self.settings.train)
        layer.A, layer.B, layer.gate = (nn.Parameter(part.clone().contiguous()) for part in (V, U, S))
        self.take_away(name, layer, U * S, V)

    def size_branch(self, layer: CoDyRALinear) -> None:
        """As many triples as train."""
        smaller = min(layer.in_features, layer.out_features)
        count = smaller - round((1 - self.settings.train) * smaller)
        layer.A = nn.Parameter(layer.A.new_empty(count, layer.in_features))
        layer.B = nn.Parameter(layer.B.new_empty(layer.out_features, count))
        layer.gate = nn.Parameter(layer.gate.new_empty(count))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """The update is the difference to what the branch has started as."""
        return self.changes(*super().finish(model))
