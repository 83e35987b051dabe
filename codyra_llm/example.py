"""One row as token ids: what models are trained and scored on, and what methods keep of finished tasks."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row as ids.

    Attributes:
        prompt: what is read; begins with the tokenizer's begin mark where it has one.
        answer: what is learned; ends with the end mark, or with the token that ends a turn.
        unlearned: ranges (begin, end) of the answer that are read only: what the user says in between.
        cut: whether the prompt was too long, and lost part of its body.
    """

    prompt: list[int]
    answer: list[int]
    unlearned: tuple[tuple[int, int], ...] = ()
    cut: bool = False

    @property
    def learned(self) -> int:
        """How many tokens the loss counts."""
        return len(self.answer) - sum(end - begin for begin, end in self.unlearned)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def to_bytes(self) -> bytes:
        """What no other example has, for a hash."""
        parts = [self.prompt, self.answer, *map(list, self.unlearned)]
        return b"".join(array("q", [len(ids), *ids]).tobytes() for ids in parts)
