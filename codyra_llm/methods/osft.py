"""OSFT: trains a weight's smaller singular triples and leaves the leading ones unchanged (arXiv 2504.07097)."""

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
    """Settings of OSFT: the share of each weight that trains."""

    train: float = option(0.5, "share of the singular triples, from the smallest on, that train", within=SHARE)


class OSFT(Method):
    """W = U_h S_h V_h + U_l S_l V_l: U_l, S_l and V_l train, orthogonally to U_h and V_h.

    The gated branch is U_l diag(S_l) V_l; its initial value is subtracted from the weight, so the update is the
    difference. The projections are part of the forward pass, so no optimizer step can leave the orthogonal space. Of
    the two released forms, one projects only gradients, so that AdamW leaves the space; the other projects parameters
    after each step and gives the same numbers as this. The decomposition is recomputed for each task. The method trains
    about as many values as full fine-tuning and needs learning rates as small; it needs whole weights, so ZeRO-3 is not
    supported.
    """

    name = "osft"
    summary = "OSFT: the smaller singular triples of each weight train, off the leading ones"
    Settings = OSFTSettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False, whole_updates=True, continues=True)

    @property
    def adapter(self) -> CoDyRAConfig:
        """The adapter configuration: gates train, and no threshold is applied to them."""
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
        """FLOPs relative to LoRA: adds the branch, its weight gradients, and the subtracted initial branch."""
        return 1 + 5 * self.settings.train

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Initializes the branch with the weight's smaller singular triples, and subtracts it from W."""
        U, S, V = block_leading(layer, 1 - self.settings.train)
        layer.A, layer.B, layer.gate = (nn.Parameter(part.clone().contiguous()) for part in (V, U, S))
        self.take_away(name, layer, U * S, V)

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Gives the branch as many components as there are singular triples that train."""
        smaller = min(layer.in_features, layer.out_features)
        count = smaller - round((1 - self.settings.train) * smaller)
        layer.A = nn.Parameter(layer.A.new_empty(count, layer.in_features))
        layer.B = nn.Parameter(layer.B.new_empty(layer.out_features, count))
        layer.gate = nn.Parameter(layer.gate.new_empty(count))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Returns the update as the difference from the initial branch."""
        return self.changes(*super().finish(model))
