"""The few pictures of each class that a domain is learned from.

`draw` is a pure function of its arguments. The official code draws from a generator that all domains and all
evaluations share, so that a draw depends on what was read before it: `reference_draw` and `reference_indices`.
"""

import random
from collections.abc import Sequence

import numpy

from codyra_llm.domains.images.pictures import Picture


def draw(pictures: Sequence[Picture], shots: int, seed: int, domain: str) -> list[Picture]:
    """`shots` pictures of each class, classes in order; of a class that has fewer, some stand more than once.

    What is drawn of a class depends on (seed, domain, class, shots) and on that class's pictures alone.
    """
    drawn = []
    for label, items in sorted(_by_label(pictures).items()):
        drawn += _shots_of(items, shots, random.Random(f"{seed}/{domain}/{label}/{shots}"))
    return drawn


def reference_draw(pictures: Sequence[Picture], shots: int, generator: random.Random) -> list[Picture]:
    """As the official code draws from a split file: classes as they first appear, all from one generator.

    Args:
        generator: stands for Python's global one; a next domain, or a second read of this one, goes on with it.
    """
    drawn = []
    for items in _by_label(pictures).values():
        drawn += _shots_of(items, shots, generator)
    return drawn


def reference_indices(labels: Sequence[int], shots: int, generator: numpy.random.RandomState) -> list[int]:
    """As the official code draws from arrays (MNIST, CIFAR100): which pictures, of each class in order.

    Args:
        generator: stands for numpy's global one.
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
