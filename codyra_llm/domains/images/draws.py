"""Draws the few pictures of each class that a domain is learned from.

`draw` is a pure function of its arguments. The official code uses one generator for all domains and all evaluations,
so that a draw depends on what was read before it: `reference_draw` and `reference_indices` reproduce it.
"""

import random
from collections.abc import Sequence

import numpy

from codyra_llm.domains.images.pictures import Picture


def draw(pictures: Sequence[Picture], shots: int, seed: int, domain: str) -> list[Picture]:
    """Draws `shots` pictures of each class, in class order; a class with fewer pictures has some more than once.

    The draw of a class depends on (seed, domain, class, shots) and on that class's pictures alone.
    """
    drawn = []
    for label, items in sorted(_by_label(pictures).items()):
        drawn += _shots_of(items, shots, random.Random(f"{seed}/{domain}/{label}/{shots}"))
    return drawn


def reference_draw(pictures: Sequence[Picture], shots: int, generator: random.Random) -> list[Picture]:
    """Draws as the official code does from a split file: classes in order of appearance, all from one generator.

    Args:
        generator: replaces Python's global one; a next domain, or a second read of this one, continues from its state.
    """
    drawn = []
    for items in _by_label(pictures).values():
        drawn += _shots_of(items, shots, generator)
    return drawn


def reference_indices(labels: Sequence[int], shots: int, generator: numpy.random.RandomState) -> list[int]:
    """Draws as the official code does from arrays (MNIST, CIFAR100); returns the indices, class by class.

    Args:
        generator: replaces numpy's global one.
    """
    every = numpy.asarray(labels)
    drawn: list[int] = []
    for label in numpy.unique(every):
        (places,) = numpy.where(every == label)
        drawn += generator.choice(places, shots, replace=len(places) < shots).tolist()
    return drawn


def _by_label(pictures: Sequence[Picture]) -> dict[int, list[Picture]]:
    groups: dict[int, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.label, []).append(picture)
    return groups


def _shots_of(items: list[Picture], shots: int, generator: random.Random) -> list[Picture]:
    return generator.sample(items, shots) if len(items) >= shots else generator.choices(items, k=shots)
