"""The fifteen tasks of the long-sequence benchmark, prepared from generated rows with the public data sets' columns."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.data.stream import TaskStream, read_task_file
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "tasks" / "long_sequence"
TEXTS = (
    "text", "content", "question_title", "best_answer", "premise", "hypothesis", "question1", "question2", "sentence1",
    "sentence2", "sentence", "word", "choice1", "choice2", "passage", "paragraph", "answer",
)  # fmt: skip


@pytest.fixture(scope="module")
def module() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "prepare.py"))


def load(path: str, name: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Yields rows with the columns of all data sets; some are in both splits, some have no label."""
    start = 0 if split == "train" else 1100
    for number in range(start, start + 1200):
        row: dict[str, Any] = {column: f"{column} of {number}" for column in TEXTS}
        row["question"] = ("cause", "effect")[number % 2] if name == "copa" else f"question of {number}"
        yield {**row, "label": number % 2 if number % 10 else -1, "topic": number % 10}


def test_every_task_is_prepared(module: dict[str, Any], tmp_path: Path) -> None:
    module["prepare"](tmp_path, module["SOURCES"], load)
    specs, orders, _ = read_task_file(FOLDER / "long_sequence.yaml")
    assert set(specs) == set(module["SOURCES"])
    assert [len(order) for order in orders.values()] == [4, 4, 4, 15, 15, 15]
    stream = TaskStream.load(FOLDER / "long_sequence.yaml", tmp_path, "order4")
    for task in stream:
        assert 900 <= len(task.train) <= 1000 and len(task.test) == 500
        assert not {row["prompt"] for row in task.train} & {row["prompt"] for row in task.test}
        labels = module["SOURCES"][task.name].labels
        assert {row["answer"].strip() for row in task.train} <= set(labels)
        assert all(label in row["prompt"] for row in task.test[:3] for label in labels)
        body = task.spec.body
        assert body is None or all(body.start in row["prompt"] and body.end in row["prompt"] for row in task.test)


def test_rows_are_the_same_every_time(module: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        module["prepare"](tmp_path / name, ["copa", "yahoo"], load)
    for path in (tmp_path / "one").rglob("*.json"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    first = json.loads((tmp_path / "one" / "copa" / "test.json").read_text())[0]
    assert "What was the cause?" in first["prompt"] or "What happened as a result?" in first["prompt"]
