"""TIES: averages the largest entries of the tasks' updates that have the majority sign (arXiv 2306.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from codyra_llm.adapter.merging import Factors
from codyra_llm.methods.base import Method
from codyra_llm.options import ABOVE_ZERO, SHARE, option


@dataclass(frozen=True)
class TIESSettings:
    """Settings of TIES: the share of entries that is merged, and the factor of the result."""

    density: float = option(0.2, "share of each update's entries that counts, from the largest on", within=SHARE)
    scale: float = option(1.0, "factor of the merged update", within=ABOVE_ZERO)


class TIES(Method):
    """W_t = W_0 + scale TIES(dW_1, ..., dW_t); each task is learned from the model merged from the updates before it.

    Entries are ranked within each projection (released: over the whole model); as released, one entry more than the
    share is kept. The result is dense: nothing is kept besides the ledger.
    """

    name = "ties"
    summary = "TIES: trimmed updates whose entries agree in sign, averaged"
    Settings = TIESSettings

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """Returns the merged update, dense: A is the identity."""
        vectors = torch.stack([(B @ A) for B, A in filter(None, updates)])
        merged = merge(vectors.flatten(1), settings.density).view(vectors.shape[1:])
        return settings.scale * merged, torch.eye(merged.shape[1], dtype=merged.dtype)


def trimmed(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """Returns [tasks, values] with the entries of smallest magnitude in each row set to zero."""
    count = vectors.shape[1]
    dropped = count - int(count * density)
    if not dropped:
        return vectors
    least = vectors.abs().kthvalue(dropped, dim=1, keepdim=True).values
    return torch.where(vectors.abs() >= least, vectors, torch.zeros_like(vectors))


def merge(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """Returns [values]: the mean of those trimmed entries of [tasks, values] whose sign is that of their sum.

    Where the sum is zero, the majority sign over all values is used.
    """
    kept = trimmed(vectors, density)
    sign = kept.sum(dim=0).sign()
    majority = sign.sum().sign()
    sign = torch.where(sign == 0, majority, sign)
    agree = torch.where(sign > 0, kept > 0, kept < 0)
    return (kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
