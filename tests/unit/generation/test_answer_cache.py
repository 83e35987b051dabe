"""The cache of answers: used only for the same model and the same questions, and only if its files are intact."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.example import Example
from codyra_llm.generation.answer_cache import recall, remember
from codyra_llm.generation.generate import Answered, Question

QUESTIONS = [Question(Example([1, 2, 3], [4]), 0), Question(Example([5], []), 8, ("\n",))]
ANSWERS = [Answered("", 0, 0.1 + 0.2, True), Answered("so it is é", 4, 0.0, False)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path))
    return tmp_path


def test_what_was_answered_is_known_to_the_bit() -> None:
    assert recall("a model", QUESTIONS) is None
    remember("a model", QUESTIONS, ANSWERS)
    assert recall("a model", QUESTIONS) == ANSWERS


@pytest.mark.parametrize(
    "change",
    [
        {"example": Example([1, 2, 9], [4])},
        {"example": Example([1, 2, 3], [9])},
        {"max_new_tokens": 1},
        {"stop": ("stop",)},
    ],
)
def test_another_question_or_model_is_another_matter(change: dict[str, Any]) -> None:
    remember("a model", QUESTIONS, ANSWERS)
    assert recall("a model", [dataclasses.replace(QUESTIONS[0], **change), QUESTIONS[1]]) is None
    assert recall("a model", QUESTIONS[:1]) is None
    assert recall("another model", QUESTIONS) is None


def test_damaged_answers_are_not_known(cache: Path) -> None:
    remember("a model", QUESTIONS, ANSWERS)
    (file,) = cache.rglob("*.json")
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"0.3", b"0.4"), whole[:70], b"\xff" + whole):
        file.write_bytes(damaged)
        assert recall("a model", QUESTIONS) is None
    file.write_bytes(whole)
    assert recall("a model", QUESTIONS) == ANSWERS


def test_a_cache_that_cannot_be_written_stops_nobody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("CODYRA_CACHE", str(cache / "file"))
    remember("a model", QUESTIONS, ANSWERS)
    assert recall("a model", QUESTIONS) is None
