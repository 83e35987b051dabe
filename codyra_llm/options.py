"""One setting: its default, its help text, and the range that it must be in."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from codyra_llm.text import shown

LARGEST, LARGEST_SEED = 10**9, 2**63 - 1  # of any number among the settings


@dataclass(frozen=True)
class Range:
    """What a number may be, in words and as a test."""

    text: str
    holds: Callable[[float], bool]


AT_LEAST_ONE = Range("at least 1", lambda value: value >= 1)
AT_LEAST_TWO = Range("at least 2", lambda value: value >= 2)
AT_LEAST_ZERO = Range("at least 0", lambda value: value >= 0)
ABOVE_ZERO = Range("above 0", lambda value: value > 0)
DECAY = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
FRACTION = Range("at least 0 and at most 1", lambda value: 0 <= value <= 1)


def option(
    default: Any, help: str, neutral: bool = False, within: Range | None = None, unless_set: bool = False
) -> Any:
    """A dataclass field that carries its own help text and range.

    Args:
        neutral: results do not depend on it.
        unless_set: they do not while it has its default, so that runs from before it was there are still the same run.
    """
    metadata = {"help": help, "neutral": neutral, "within": within, "unless_set": unless_set}
    return field(default=default, metadata=metadata)


def options(cls: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """(dotted name, field) of every setting of a dataclass and of those that it is made of."""
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            yield from options(each.type, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + each.name, each


def show_value(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return ",".join(value) if isinstance(value, tuple) else "empty" if value is None else str(value)


def check_numbers(settings: Any) -> None:
    """Raises ValueError where a setting is a number that is not finite, out of its range, or larger than it can be."""
    for name, each in options(type(settings)):
        value = operator.attrgetter(name)(settings)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        largest = LARGEST_SEED if name == "seed" else LARGEST
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number")
        if abs(value) > largest:
            raise ValueError(f"{name} is {shown(value)}; it must be at most {largest}")
        within: Range | None = each.metadata["within"]
        if within and not within.holds(value):
            raise ValueError(f"{name} is {shown(value)}; it must be {within.text}")
