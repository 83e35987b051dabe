"""The built-in sample of general ability: well-formed and fair, with items of every kind in the quickstart."""

import json
from collections import Counter
from typing import Any

import pytest

from codyra_llm.config import GeneralConfig, load_config
from codyra_llm.evaluation.general.suites import SHIPPED, load_suites
from tests.conftest import REPOSITORY


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHIPPED / "sample" / f"{name}.jsonl").read_text().splitlines()]


def test_a_hundred_items_and_none_twice() -> None:
    questions, phrases = rows("choice"), rows("cloze")
    texts = [row["question"] for row in questions] + [row["text"] for row in phrases]
    assert len(set(texts)) == len(texts) == 100
    assert set(Counter(row["stratum"] for row in questions).values()) == {15}
    assert all(text == text.strip() for text in texts)


def test_four_different_answers_and_the_right_one_in_each_place_as_often() -> None:
    questions = rows("choice")
    assert all(len(set(row["choices"])) == 4 for row in questions)
    assert Counter(row["answer"] for row in questions) == dict.fromkeys(range(4), 15)


def test_no_phrase_holds_its_answer() -> None:
    for row in rows("cloze"):
        assert row["answer"] not in row["text"].replace(",", "").split(), row
        assert " " not in row["answer"]


def test_passages_are_of_a_few_hundred_characters() -> None:
    assert all(300 < len(row["text"]) < 700 for row in rows("text"))
    assert sum(len(row["text"]) for row in rows("text")) > 3000


@pytest.mark.parametrize(
    ("suite", "items"), [("sample", 100), ("sample_choice", 60), ("sample_cloze", 40), ("text", 8)]
)
def test_they_are_suites(suite: str, items: int) -> None:
    (loaded,) = load_suites(GeneralConfig(suites=(suite,)))
    assert sum(map(len, loaded.items.values())) == items


def test_the_quickstart_measures_some_of_every_kind() -> None:
    (loaded,) = load_suites(load_config(REPOSITORY / "configs" / "quickstart.yaml").general)
    kinds = Counter(
        loaded.tasks[name].eval_docs[item]["stratum"] for name, items in loaded.items.items() for item in items
    )
    assert sum(kinds.values()) == 40
    assert len(kinds) == 7
    assert min(kinds.values()) >= 5
