"""Prompt lookup (n-gram) speculative decoding; the output is that of greedy decoding.

A guess costs no model, and to read it along with the last token costs little more than to read that token alone: both
are one pass over the weights. What the model would not have said is taken back, so that answers stay the greedy ones.
"""

from collections.abc import Sequence


class Draft:
    """A row's tokens, and where each pair of neighbours was seen last.

    The better its guesses are, the longer they get.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._trusted = 3
        self._add(prompt)

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that may come next; none where the last two are new."""
        place = self._after.get(tuple(self._tokens[-2:]), len(self._tokens))
        wanted = max(0, min(most, self._trusted))
        following = self._tokens[place : place + wanted]
        return (following * wanted)[:wanted]  # what reaches the end goes round and round

    def settle(self, guess: Sequence[int], tokens: Sequence[int]) -> None:
        """What came after a guess: as much of it as was right, and one more."""
        if guess:
            self._trusted = 2 * len(tokens) + 1
        self._add(tokens)

    def _add(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._after[tuple(self._tokens[-2:])] = len(self._tokens)
            self._tokens.append(token)
