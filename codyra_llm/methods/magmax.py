"""MagMax: merges, for each weight, its change of largest magnitude after any task (arXiv 2407.06322)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from codyra_llm.adapter.merging import Factors
from codyra_llm.methods.base import Method
from codyra_llm.options import SHARE, option


@dataclass(frozen=True)
class MagMaxSettings:
    """Settings of MagMax: the share of the chosen change that is merged."""

    scale: float = option(1.0, "share of the chosen change; published: 0.5 of independent models", within=SHARE)


class MagMax(Method):
    """W_t = W_0 + scale m_t; each entry of m_t is that of m_{t-1} or m_{t-1} + dW_t, whichever has larger magnitude.

    The published method tunes one model through all tasks and chooses among its changes after each; here a task is
    learned from the merged model, so the model that is evaluated is the one that training starts from. The later change
    wins a tie. The result is dense: nothing is kept besides the ledger, and one projection is merged at a time.
    """

    name = "magmax"
    summary = "MagMax: of each weight the change of largest magnitude after any task"
    Settings = MagMaxSettings

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """Returns the chosen change after all entries, dense: A is the identity."""
        chosen = torch.zeros(())
        for update in filter(None, updates):
            B, A = update
            chosen = larger(chosen, chosen + settings.scale * (B @ A))
        return chosen, torch.eye(chosen.shape[1], dtype=chosen.dtype)


def larger(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns, for each entry, the value of larger magnitude; the second where both are equal."""
    return torch.where(second.abs() >= first.abs(), second, first)
