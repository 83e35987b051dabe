"""MagMax: of each weight, the change that was largest after any task (arXiv 2407.06322)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from codyra_llm.adapter.merging import Factors
from codyra_llm.methods.base import Method
from codyra_llm.options import SHARE, option


@dataclass(frozen=True)
class MagMaxSettings:
    """How much of the chosen change is merged."""

    scale: float = option(1.0, "share of the chosen change; published: 0.5 of independent models", within=SHARE)


class MagMax(Method):
    """W_t = W_0 + scale m_t, where m_t has, entry by entry, the larger of m_{t-1} and m_{t-1} + dW_t in magnitude.

    The published method tunes one model through all tasks and chooses among its changes after each; here a task is
    learned from the merged model, so that what is measured is what is trained on. A later change wins a tie. The result
    is dense: nothing is kept beside the ledger, and merging takes one projection at a time.
    """

    name = "magmax"
    summary = "MagMax: of each weight the change of largest magnitude after any task"
    Settings = MagMaxSettings

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """The running choice, dense: A is the identity."""
        chosen = torch.zeros(())
        for update in filter(None, updates):
            B, A = update
            chosen = larger(chosen, chosen + settings.scale * (B @ A))
        return chosen, torch.eye(chosen.shape[1], dtype=chosen.dtype)


def larger(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Entry by entry the one of larger magnitude; the second where they are equal."""
    return torch.where(second.abs() >= first.abs(), second, first)
