"""SeqFT: full fine-tuning of the projections, task after task."""

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.base import Method, Needs


class SeqFT(Method):
    """Every entry of the target projections trains: the update is dense, a branch whose A is the identity, frozen.

    Embeddings, norms and head do not change. Use a learning rate of full fine-tuning, ten to a hundred times smaller
    than for an adapter. Ledger entries are as large as the projections.
    """

    name = "seqft"
    summary = "full fine-tuning of the projections"
    needs = Needs(quantized_base=False)

    @property
    def relative_cost(self) -> float:
        """1.5: the gradient of the weights is computed as well."""
        return 1.5

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Replaces the branch by a dense one: B is the update, A the frozen identity."""
        inputs, A = layer.in_features, layer.A
        layer.A = nn.Parameter(torch.eye(inputs, dtype=A.dtype, device=A.device), requires_grad=False)
        layer.B = nn.Parameter(A.new_zeros(layer.out_features, inputs))
        layer.gate = nn.Parameter(A.new_ones(inputs), requires_grad=False)

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Replaces the branch as `start_branch` does."""
        self.start_branch("", layer)
