"""Selection of entries of a ledger, and their shares."""

from typing import Any

import pytest

from codyra_llm.errors import UserError
from codyra_llm.ledger.ledger import BaseModel, Entry, Ledger
from codyra_llm.ledger.selection import select

LEDGER = Ledger(
    BaseModel("base", "0" * 64, "float32"),
    [Entry(f"{i:02d}-{task}", task, {}, 1, 1, 1.0) for i, task in enumerate(("a", "b", "c", "a"), 1)],
)


@pytest.mark.parametrize(
    ("wanted", "shares"),
    [
        ({}, {"01-a": 1, "02-b": 1, "03-c": 1, "04-a": 1}),
        ({"upto": "2"}, {"01-a": 1, "02-b": 1}),
        ({"upto": "b"}, {"01-a": 1, "02-b": 1}),
        ({"upto": "0"}, {}),
        ({"upto": "04-a", "without": ["c"]}, {"01-a": 1, "02-b": 1, "04-a": 1}),
        ({"scales": {"b": 0.5, "01-a": -1.0}}, {"01-a": -1, "02-b": 0.5, "03-c": 1, "04-a": 1}),
        ({"scales": {"b": 0.0}}, {"01-a": 1, "03-c": 1, "04-a": 1}),
        ({"scales": {"b": 0.5}, "without": ["b"]}, {"01-a": 1, "03-c": 1, "04-a": 1}),
    ],
)
def test_what_is_wanted(wanted: dict[str, Any], shares: dict[str, Any]) -> None:
    assert select(LEDGER, **wanted) == shares


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"upto": "5"}, "there is no entry 5; the ledger has 4"),
        ({"upto": "9" * 400}, "there is no entry 999999999; the ledger has 4"),
        ({"upto": "d"}, "d"),
        ({"without": ["a"]}, "a"),
        ({"scales": {"b": float("nan")}}, "the share of b is nan; it must be a finite number"),
        ({"upto": "1", "without": ["b"]}, "02-b comes after the entries that are wanted"),
    ],
)
def test_what_cannot_be_had(wanted: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        select(LEDGER, **wanted)
