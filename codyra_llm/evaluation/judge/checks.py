"""Rule-based checks that a prompt may require of its answer, in the manner of IFEval (arXiv 2311.07911)."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

import pydantic
import pydantic.dataclasses
from pydantic import Field

_Count = Annotated[int, Field(strict=True, ge=0)] | None
_Text = Annotated[str, Field(min_length=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Checks:
    """The conditions that an answer must satisfy; None: not required.

    Attributes:
        max_words, min_words: number of words, separated by whitespace.
        json: the whole answer is JSON, in a code fence or not.
        must_include, must_exclude: words or phrases, case-insensitive.
        starts_with, ends_with: exact text, ignoring whitespace around the answer.
        bullets: exact number of lines that begin with `*` or `-`.
    """

    max_words: _Count = None
    min_words: _Count = None
    json: Literal[True] | None = None
    must_include: tuple[_Text, ...] | None = None
    must_exclude: tuple[_Text, ...] | None = None
    starts_with: _Text | None = None
    ends_with: _Text | None = None
    bullets: _Count = None


def passed(checks: Checks, answer: str) -> dict[str, bool]:
    """Returns, by name of each required check, whether the answer passes."""
    return {name: _RULES[name](answer.strip(), wanted) for name, wanted in asdict(checks).items() if wanted is not None}


def _is_json(answer: str, _: Any) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n?```", answer, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return True


_RULES: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda answer, most: len(answer.split()) <= most,
    "min_words": lambda answer, least: len(answer.split()) >= least,
    "json": _is_json,
    "must_include": lambda answer, phrases: all(phrase.lower() in answer.lower() for phrase in phrases),
    "must_exclude": lambda answer, phrases: not any(phrase.lower() in answer.lower() for phrase in phrases),
    "starts_with": str.startswith,
    "ends_with": str.endswith,
    "bullets": lambda answer, count: len(re.findall(r"^\s*[*-]\s+\S", answer, re.MULTILINE)) == count,
}
