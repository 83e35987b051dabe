"""A setting of a dataclass: its default, its help text, and its valid range."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from codyra_llm.text import shown

LARGEST, LARGEST_SEED = 10**9, 2**63 - 1  # bounds of all numbers among the settings


@dataclass(frozen=True)
class Range:
    """The valid values of a number, as text and as a test."""

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
    """Returns a dataclass field with a help text and a range.

    Args:
        default: the default value.
        help: the help text.
        neutral: True if results do not depend on the setting.
        within: the valid range.
        unless_set: True if results do not depend on the setting while it has its default, so that runs that are older
            than the setting still count as the same run.
    """
    metadata = {"help": help, "neutral": neutral, "within": within, "unless_set": unless_set}
    return field(default=default, metadata=metadata)


def options(cls: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Yields (dotted name, field) of every setting of a dataclass and of its sections."""
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            yield from options(each.type, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + each.name, each


def show_value(value: Any) -> str:
    """Returns a setting's value in the form that the command line takes."""
    return ",".join(value) if isinstance(value, tuple) else "empty" if value is None else str(value)


def check_numbers(settings: Any) -> None:
    """Raises ValueError if a number among the settings is not finite, out of its range, or too large."""
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
