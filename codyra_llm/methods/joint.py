"""Joint training: one adapter on the rows of all tasks so far, learned anew from the base model; a bound."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.seqlora import SeqLoRA

if TYPE_CHECKING:
    from codyra_llm.example import Example


class Joint(SeqLoRA):
    """After task t the model is W_0 plus a fresh adapter that has learned the rows of tasks 1 to t, mixed.

    Its steps are the sum of these tasks' steps, under one cosine, so that the last row of the matrix is that of joint
    training at the budget of the whole stream; the rows before it cost as much again. What the task before has merged
    is taken away while a task trains, and the entries telescope, as SeqLoRA's do.
    """

    name = "joint"
    summary = "bound: one adapter on the rows of all tasks so far, from the base model"

    @property
    def lengthens(self) -> bool:
        """The steps of all tasks so far."""
        return True

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """Every row of every earlier task."""
        return [row for rows in earlier.values() for row in rows]

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """A fresh branch; the adapter of the task before is taken away."""
        if f"{name}.A" in self.kept:
            A, B = (self.kept[f"{name}.{part}"].to(layer.A) for part in "AB")
            self.take_away(name, layer, B, A)
