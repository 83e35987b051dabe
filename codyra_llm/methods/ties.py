"""TIES: the largest entries of each task's update, those whose sign the majority has, averaged (arXiv 2306.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from codyra_llm.adapter.merging import Factors
from codyra_llm.methods.base import Method
from codyra_llm.options import ABOVE_ZERO, SHARE, option


@dataclass(frozen=True)
class TIESSettings:
    """What of each update counts."""

    density: float = option(0.2, "share of each update's entries that counts, from the largest on", within=SHARE)
    scale: float = option(1.0, "factor of the merged update", within=ABOVE_ZERO)


class TIES(Method):
    """W_t = W_0 + scale TIES(dW_1, ..., dW_t), each learned from the model that the ones before have given.

    Entries are ranked within each projection (released: over the whole model); as released, the share of them is kept
    and one entry more. The result is dense: nothing is kept beside the ledger.
    """

    name = "ties"
    summary = "TIES: trimmed updates whose entries agree in sign, averaged"
    Settings = TIESSettings

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """The merged update, dense: A is the identity."""
        vectors = torch.stack([(B @ A) for B, A in filter(None, updates)])
        merged = merge(vectors.flatten(1), settings.density).view(vectors.shape[1:])
        return settings.scale * merged, torch.eye(merged.shape[1], dtype=merged.dtype)


def trimmed(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """[tasks, values] with the entries of smallest magnitude in each row at zero."""
    count = vectors.shape[1]
    dropped = count - int(count * density)
    if not dropped:
        return vectors
    least = vectors.abs().kthvalue(dropped, dim=1, keepdim=True).values
    return torch.where(vectors.abs() >= least, vectors, torch.zeros_like(vectors))


def merge(vectors: torch.Tensor, density: float) -> torch.Tensor:
    """[values]: the mean of those trimmed entries of [tasks, values] whose sign is that of their sum."""
    kept = trimmed(vectors, density)
    sign = kept.sum(dim=0).sign()
    majority = sign.sum().sign()
    sign = torch.where(sign == 0, majority, sign)
    agree = torch.where(sign > 0, kept > 0, kept < 0)
    return (kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
