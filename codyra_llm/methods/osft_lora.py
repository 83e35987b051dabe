"""OSFT in low rank (OPLoRA): updates that do not change a weight's leading singular triples (arXiv 2510.13003)."""

from dataclasses import dataclass

import torch

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.base import Method, Needs
from codyra_llm.options import FRACTION, option


@dataclass(frozen=True)
class OSFTLoRASettings:
    """Settings of low-rank OSFT: the share of each weight that is protected."""

    keep: float = option(0.5, "share of the singular triples, from the largest on; 0: lora", within=FRACTION)


class OSFTLoRA(Method):
    """dW = (I - U U^T) B A (I - V V^T), with U and V the leading singular vectors of the weight before the task.

    Both projections are part of the forward pass, so gradients are projected and no optimizer step can leave the space;
    in one of the two released forms of OSFT (arXiv 2504.07097) only gradients are projected, so that AdamW leaves it.
    The decomposition is recomputed for each task. The method needs whole weights, so ZeRO-3 is not supported.
    """

    name = "osft_lora"
    summary = "OSFT in low rank: updates orthogonal to a weight's leading singular vectors"
    Settings = OSFTLoRASettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Blocks the leading singular directions of the weight in the branch."""
        block_leading(layer, self.settings.keep)


def block_leading(layer: CoDyRALinear, keep: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks the directions of the share `keep` of the weight's singular triples, largest first.

    Returns:
        The other triples: U [out_features, count], S [count], V^T [count, in_features], in the dtype of the branch.
    """
    weight: torch.Tensor = layer.base.weight.detach().to(layer.A)  # type: ignore[operator]
    count = round(keep * min(weight.shape))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    if count:
        layer.blocked_outputs = left[:, :count].contiguous()
        layer.blocked_inputs = right[:count].T.contiguous()
    return left[:, count:], values[count:], right[count:]
