"""A continued adapter that keeps rows of finished tasks, for methods that use their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.example import Example
from codyra_llm.methods.hooks import RowPasses
from codyra_llm.methods.seqlora import SeqLoRA
from codyra_llm.options import AT_LEAST_ZERO, option


@dataclass(frozen=True)
class MemorySettings:
    """Settings of the memory: how many rows of a finished task are kept."""

    rows: int = option(8, "rows of each finished task that are kept; 0: seqlora", within=AT_LEAST_ZERO)


class WithMemory(SeqLoRA):
    """SeqLoRA that keeps rows of each task, drawn by the seed. Kept: "<task>/ids", "/lengths", "/unlearned"."""

    name = ""  # a base class, not a method to choose
    _new: list[Example]

    @property
    def memory(self) -> dict[str, list[Example]]:
        """The kept rows of each earlier task, in order."""
        names = [name.removesuffix("/ids") for name in self.kept if name.endswith("/ids")]
        return {name: rows_of(self.kept, name) for name in names}

    def after_training(self, rows: Sequence[Example], passes: RowPasses) -> None:
        """Samples the rows to keep."""
        self._new = self.drawn(rows, self.settings.rows, f"memory/{self.task}")

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as SeqLoRA, and keeps the rows of all tasks so far."""
        earlier = {name: value for name, value in self.kept.items() if "/" in name}
        report, updates = super().finish(model)
        self.kept |= earlier
        if self._new:
            self.kept |= tensors_of(self._new, self.task)
        return report, updates


def tensors_of(rows: Sequence[Example], name: str) -> dict[str, torch.Tensor]:
    """Returns rows as tensors: concatenated ids, [rows, 2] prompt and answer lengths, [ranges, 3] unlearned spans."""
    ids = [token for row in rows for token in (*row.prompt, *row.answer)]
    unlearned = [[number, *span] for number, row in enumerate(rows) for span in row.unlearned]
    return {
        f"{name}/ids": torch.tensor(ids),
        f"{name}/lengths": torch.tensor([[len(row.prompt), len(row.answer)] for row in rows]),
        f"{name}/unlearned": torch.tensor(unlearned, dtype=torch.int64).view(-1, 3),
    }


def rows_of(kept: dict[str, torch.Tensor], name: str) -> list[Example]:
    """Returns the rows that `tensors_of` has stored as tensors."""
    ids, rows, at = kept[f"{name}/ids"].tolist(), [], 0
    spans = kept[f"{name}/unlearned"].tolist()
    for number, (prompt, answer) in enumerate(kept[f"{name}/lengths"].tolist()):
        own = tuple((begin, end) for row, begin, end in spans if row == number)
        rows.append(Example(ids[at : at + prompt], ids[at + prompt : at + prompt + answer], own))
        at += prompt + answer
    return rows
