"""Replay: fixed-rank LoRA with a few rows of every earlier task mixed into each step."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codyra_llm.methods.base import Method, Needs
from codyra_llm.options import AT_LEAST_ONE, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of replay: how many rows are kept, and whether they add steps."""

    fraction: float = option(
        0.01, "share of each earlier task's rows that is kept, at least one row; 0: none", within=FRACTION
    )
    reservoir: int | None = option(
        None,
        "size of one buffer for all tasks, filled by reservoir sampling in place of `fraction`",
        within=AT_LEAST_ONE,
    )
    extra_steps: bool = option(False, "replayed rows make a task longer; else they replace some of its own rows")


class Replay(Method):
    """The task's own rows and kept rows are shuffled together, so steps contain kept rows in proportion to their share.

    The kept rows depend on the seed and the tasks alone, so nothing has to be saved for a resume. A kept picture is
    classified among the classes of its own task, as when that task was learned, not among all learned classes: the loss
    of a picture is the same in its own task and in replay (domains/images/contrastive.py).
    """

    name = "replay"
    summary = "fixed-rank LoRA with kept rows of earlier tasks in each step"
    Settings = ReplaySettings
    needs = Needs(first_task=True)

    @property
    def lengthens(self) -> bool:
        """True if replayed rows add steps (`extra_steps`)."""
        return bool(self.settings.extra_steps)

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """Returns a seeded sample of each earlier task, or the content of one reservoir over all of them."""
        if self.settings.reservoir:
            seen = [row for rows in earlier.values() for row in rows]
            draw = random.Random(f"{self.config.seed}/reservoir")
            slots = reservoir(len(seen), self.settings.reservoir, lambda last: draw.randint(0, last))
            return [seen[row] for row in slots]
        seed, fraction = self.config.seed, self.settings.fraction
        return [rows[row] for name, rows in earlier.items() for row in sample(seed, name, len(rows), fraction)]


def sample(seed: int, task: str, rows: int, fraction: float) -> list[int]:
    """Returns the numbers of a task's kept rows: the share `fraction`, at least one; none if the share is zero."""
    count = max(1, round(fraction * rows)) if fraction else 0
    return sorted(random.Random(f"{seed}/replay/{task}").sample(range(rows), count))


def reservoir(rows: int, size: int, draw: Callable[[int], int]) -> list[int]:
    """Returns the numbers of the rows in the buffer after reservoir sampling, each with the same probability.

    Args:
        rows: number of rows.
        size: size of the buffer.
        draw: returns an integer in [0, last], for the row number `last`.
    """
    slots = list(range(min(rows, size)))
    for row in range(size, rows):
        slot = draw(row)
        if slot < size:
            slots[slot] = row
    return slots
