"""DARE: the sum of updates whose entries are dropped at random and rescaled (arXiv 2311.03099)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from codyra_llm.adapter.merging import Factors
from codyra_llm.methods.base import Method
from codyra_llm.options import DECAY, option


@dataclass(frozen=True)
class DARESettings:
    """Settings of DARE: the drop probability."""

    drop: float = option(0.5, "p: probability that an entry is dropped; 0: lora", within=DECAY)


class DARE(Method):
    """W_t = W_0 + sum of m_s dW_s / (1 - p), the entries of each m_s drawn independently with P(m = 1) = 1 - p.

    Draws depend on the update alone, so a model that is rebuilt from the ledger is the same. The result is dense.
    """

    name = "dare"
    summary = "DARE: updates whose entries are dropped at random and scaled up"
    Settings = DARESettings

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """Returns the sum of the thinned updates, dense: A is the identity."""
        total = torch.zeros(())
        for B, A in filter(None, updates):
            digest = hashlib.sha256(A.contiguous().numpy().tobytes()).digest()
            draw = torch.rand(
                len(B), A.shape[1], generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            )
            total = total + thinned(B @ A, draw, settings.drop)
        return total, torch.eye(total.shape[1], dtype=total.dtype)


def thinned(update: torch.Tensor, draw: torch.Tensor, drop: float) -> torch.Tensor:
    """Returns the entries whose draw from [0, 1) is at least `drop`, divided by 1 - drop; all others are zero."""
    return torch.where(draw >= drop, update / (1 - drop), torch.zeros_like(update))
