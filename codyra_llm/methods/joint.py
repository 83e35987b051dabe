"""Joint training, a bound: after each task, one new adapter trained from the base model on the rows of all tasks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.methods.seqlora import SeqLoRA

if TYPE_CHECKING:
    from codyra_llm.example import Example


class Joint(SeqLoRA):
    """After task t the model is W_0 plus a new adapter that was trained on the mixed rows of tasks 1 to t.

    Its number of steps is the sum of these tasks' steps, under one cosine schedule, so that the last row of the matrix
    is joint training with the budget of the whole stream; the rows before it cost extra. The adapter that the previous
    task merged is subtracted while a task trains, and the ledger's entries telescope, as in SeqLoRA.
    """

    name = "joint"
    summary = "bound: one adapter on the rows of all tasks so far, from the base model"

    @property
    def lengthens(self) -> bool:
        """True: a task takes the steps of all tasks so far."""
        return True

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """Returns every row of every earlier task."""
        return [row for rows in earlier.values() for row in rows]

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Leaves the new branch as drawn, and subtracts the previous task's adapter from the projection."""
        if f"{name}.A" in self.kept:
            A, B = (self.kept[f"{name}.{part}"].to(layer.A) for part in "AB")
            self.take_away(name, layer, B, A)
