"""The mean of all tasks' updates, in place of their sum."""

from collections.abc import Sequence
from typing import Any

from codyra_llm.adapter.merging import Factors, stacked
from codyra_llm.methods.base import Method


class Mean(Method):
    """W_t = W_0 + (1/t) sum of the updates; each task is learned from the model merged from the updates before it."""

    name = "mean"
    summary = "fixed-rank LoRA whose updates are averaged over tasks"

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """Returns the stacked factors, B divided by the number of entries."""
        B, A = stacked(updates)
        return B / len(updates), A
