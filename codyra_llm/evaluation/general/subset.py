"""Which items a limit leaves of a suite: the same in every run, as evenly as can be over strata."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Stratum = TypeVar("Stratum", int, tuple[str, str])
SUBSET_SEED = 1234


def in_turns(
    strata: Mapping[Stratum, Sequence[int]], limit: int | None, seed: int | str = SUBSET_SEED
) -> list[tuple[Stratum, int]]:
    """At most `limit` items, all where it is None: one of each stratum before another of any; drawn by the seed.

    Args:
        strata: the numbers of each one's items.
    """
    draw, order = random.Random(seed), sorted(strata)
    draw.shuffle(order)  # else a limit below the number of strata would take the first ones
    drawn = {stratum: list(numbers) for stratum, numbers in strata.items()}
    for numbers in drawn.values():
        draw.shuffle(numbers)
    turns = range(max(map(len, drawn.values()), default=0))
    return [(each, drawn[each][turn]) for turn in turns for each in order if turn < len(drawn[each])][:limit]
