"""The subset of a suite's items under a limit: the same in every run, spread as evenly as possible over strata."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Stratum = TypeVar("Stratum", int, tuple[str, str])
SUBSET_SEED = 1234


def in_turns(
    strata: Mapping[Stratum, Sequence[int]], limit: int | None, seed: int | str = SUBSET_SEED
) -> list[tuple[Stratum, int]]:
    """Returns at most `limit` items (None: all), drawn by the seed, taking one item of each stratum in turn.

    Args:
        strata: the numbers of the items of each stratum.
        limit: the largest number of items.
        seed: of the draw.

    Returns:
        (stratum, number of the item) of each chosen item.
    """
    draw, order = random.Random(seed), sorted(strata)
    draw.shuffle(order)  # otherwise a limit below the number of strata would always choose the first strata
    drawn = {stratum: list(numbers) for stratum, numbers in strata.items()}
    for numbers in drawn.values():
        draw.shuffle(numbers)
    turns = range(max(map(len, drawn.values()), default=0))
    return [(each, drawn[each][turn]) for turn in turns for each in order if turn < len(drawn[each])][:limit]
