"""One row as token ids, on which models are trained and scored; methods store examples of finished tasks."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row as ids.

    Attributes:
        prompt: the ids that are read only; they begin with the BOS token if the tokenizer adds one.
        answer: the ids that are learned; they end with the EOS token, or with the token that ends a turn.
        unlearned: ranges (begin, end) of the answer that are read only, such as the user's turns in between.
        cut: True if the prompt was too long and lost part of its body.
    """

    prompt: list[int]
    answer: list[int]
    unlearned: tuple[tuple[int, int], ...] = ()
    cut: bool = False

    @property
    def learned(self) -> int:
        """Number of tokens that the loss counts."""
        return len(self.answer) - sum(end - begin for begin, end in self.unlearned)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def to_bytes(self) -> bytes:
        """Returns bytes that identify the example, for a hash."""
        parts = [self.prompt, self.answer, *map(list, self.unlearned)]
        return b"".join(array("q", [len(ids), *ids]).tobytes() for ids in parts)
