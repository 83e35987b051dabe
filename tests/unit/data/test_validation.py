"""Validation rows: none is trained on or tested on, and the choice is deterministic."""

import dataclasses
from typing import Any

import pytest

from codyra_llm.config import load_config
from codyra_llm.data.stream import TaskSpec, TaskStream
from codyra_llm.data.validation import with_validation
from codyra_llm.errors import UserError


def rows(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"{number}?", "answer": str(number)} for number in numbers]


def task_of(train: list[Any], test: list[Any], **splits: list[Any]) -> Any:
    (task,) = TaskStream.from_rows({"sums": {"train": train, "test": test, **splits}})
    return task


@pytest.mark.parametrize(("setting", "size"), [(0.25, 4), (5, 5), (1, 1)])
def test_rows_are_carved_from_the_training_rows(setting: float, size: int) -> None:
    task = task_of(rows(*range(18), *range(6)), rows(0, 1, 30))
    found = with_validation(task, setting, 1)
    assert len(found.validation) == size
    chosen = {row["prompt"] for row in found.validation}
    assert not chosen & {row["prompt"] for row in (*found.train, *task.test)}
    assert [row for row in task.train if row["prompt"] not in chosen] == found.train
    assert with_validation(task, setting, 1) == found != with_validation(task, setting, 2)
    assert [task.train[number - 1] for number in found.row_numbers["eval"]] == found.validation
    assert [task.train[number - 1] for number in found.row_numbers["train"]] == found.train


def test_documents_of_raw_text() -> None:
    texts = [{"text": f"Document {number}."} for number in range(10)]
    (task,) = TaskStream.from_rows({"news": {"train": texts, "test": texts[:1]}}, {"news": TaskSpec("bits_per_byte")})
    assert len(with_validation(task, 3, 1).validation) == 3


def test_a_split_of_its_own() -> None:
    task = task_of(rows(1, 2), rows(3), eval=rows(4))
    assert with_validation(task, "eval", 1) == task
    assert with_validation(task_of(rows(1), rows(2)), None, 1).validation == []
    with pytest.raises(UserError, match=r"task sums: train\.validation eval needs an eval split"):
        with_validation(task_of(rows(1), rows(2)), "eval", 1)
    with pytest.raises(UserError, match="task sums: eval and test are the same rows"):
        with_validation(task_of(rows(1), rows(3, 4), eval=rows(4, 3)), "eval", 1)


@pytest.mark.parametrize("setting", [2, 0.01, 0.99])
def test_some_rows_must_be_left_and_some_taken(setting: float) -> None:
    with pytest.raises(UserError, match="of 2 training rows with prompts of their own; some must be left"):
        with_validation(task_of(rows(1, 2, 3), rows(3)), setting, 1)


def test_settings() -> None:
    assert load_config(None, {"train.validation": 0.05}).train.validation == 0.05
    assert load_config(None, {"train.validation": "eval"}).train.validation == "eval"
    for value in (0, 1.5, -1, "train", ".5x"):
        with pytest.raises(UserError, match=r"train\.validation is .*; it must be eval, a share below 1, or a number"):
            load_config(None, {"train.validation": value})
    with pytest.raises(UserError, match=r"train\.early_stopping and train\.keep_best need train\.validation"):
        load_config(None, {"train.keep_best": True})
    assert dataclasses.asdict(load_config(None, {"train.validation": 20}).train)["validation"] == 20
