"""Prompt lookup (n-gram) speculative decoding; the output is that of greedy decoding.

A guess needs no model, and reading it together with the last token takes little more time than reading that token
alone: both are one pass over the weights. Guessed tokens that greedy decoding would not give are removed again.
"""

from collections.abc import Sequence


class Draft:
    """The tokens of a row, with the last position of each pair of adjacent tokens.

    Guesses get longer as long as they are right.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._trusted = 3
        self._add(prompt)

    def guess(self, most: int) -> list[int]:
        """Returns at most `most` tokens that may come next; none if the last two tokens have not occurred before."""
        place = self._after.get(tuple(self._tokens[-2:]), len(self._tokens))
        wanted = max(0, min(most, self._trusted))
        following = self._tokens[place : place + wanted]
        return (following * wanted)[:wanted]  # tokens up to the end are repeated

    def settle(self, guess: Sequence[int], tokens: Sequence[int]) -> None:
        """Adds the tokens after a guess: its correct part, and the one that the model gave next."""
        if guess:
            self._trusted = 2 * len(tokens) + 1
        self._add(tokens)

    def _add(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._after[tuple(self._tokens[-2:])] = len(self._tokens)
            self._tokens.append(token)
