"""OSFT in low rank (OPLoRA): updates that leave a weight's leading singular triples as they are (arXiv 2510.13003)."""

from dataclasses import dataclass

import torch

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.base import Method, Needs
from codyra_llm.options import FRACTION, option


@dataclass(frozen=True)
class OSFTLoRASettings:
    """How much of each weight is protected."""

    keep: float = option(0.5, "share of the singular triples, from the largest on; 0: lora", within=FRACTION)


class OSFTLoRA(Method):
    """dW = (I - U U^T) B A (I - V V^T), with U and V the leading singular vectors of the weight as the task finds it.

    Both projections are part of the forward, so gradients come out projected and no optimizer can leave the space; in
    one of the two released forms of OSFT (arXiv 2504.07097) gradients alone are projected, and AdamW leaks. The
    decomposition is made anew for each task. It needs whole weights, which ZeRO-3 does not give.
    """

    name = "osft_lora"
    summary = "OSFT in low rank: updates orthogonal to a weight's leading singular vectors"
    Settings = OSFTLoRASettings
    needs = Needs(zero_stages=(0, 1, 2), quantized_base=False)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Blocks the leading directions."""
        block_leading(layer, self.settings.keep)


def block_leading(layer: CoDyRALinear, keep: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks the directions of the share `keep` of the weight's singular triples, from the largest on.

    Returns:
        The others: U [out_features, count], S [count], V^T [count, in_features], in the dtype of the branch.
    """
    weight: torch.Tensor = layer.base.weight.detach().to(layer.A)  # type: ignore[operator]
    count = round(keep * min(weight.shape))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    if count:
        layer.blocked_outputs = left[:, :count].contiguous()
        layer.blocked_inputs = right[:count].T.contiguous()
    return left[:, count:], values[count:], right[count:]
