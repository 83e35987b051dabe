"""Rows to validate on while a task is learned: a split of their own, or some of the training rows."""

import dataclasses
import random

from codyra_llm.data.rows import Row
from codyra_llm.data.stream import Task
from codyra_llm.errors import UserError

Setting = str | float | None  # "eval", a share of the training rows below 1, a number of them, or none


def with_validation(task: Task, setting: Setting, seed: int) -> Task:
    """The task with validation rows, as `train.validation` says.

    Those of a share or number are drawn, the same ones every time, from training rows with different prompts, none of
    which is in the test split; no row with such a prompt is trained on.

    Raises:
        UserError: there are no such rows, or the task would be validated on its test split.
    """
    if setting is None:
        return task
    if setting == "eval":
        return _checked(task)
    first: dict[str, int] = {}
    for number, row in enumerate(task.train):
        first.setdefault(_key(row), number)
    tested = {_key(row) for row in task.test}
    usable = [number for key, number in first.items() if key not in tested]
    assert not isinstance(setting, str)
    size = round(setting * len(usable)) if setting < 1 else int(setting)
    if not 0 < size < len(usable):
        raise UserError(
            f"task {task.name}: train.validation {setting:g} would take {size} of {len(usable)} training rows with "
            "prompts of their own; some must be left to learn from"
        )
    chosen = sorted(random.Random(f"{seed}/{task.name}/validation").sample(usable, size))
    keys = {_key(task.train[number]) for number in chosen}
    left = [number for number, row in enumerate(task.train) if _key(row) not in keys]
    numbers = task.row_numbers.get("train") or range(1, len(task.train) + 1)
    return dataclasses.replace(
        task,
        train=[task.train[number] for number in left],
        validation=[task.train[number] for number in chosen],
        row_numbers={
            **task.row_numbers,
            "train": [numbers[number] for number in left],
            "eval": [numbers[number] for number in chosen],
        },
        places={**task.places, **({"eval": task.places["train"]} if "train" in task.places else {})},
    )


def _checked(task: Task) -> Task:
    rows, test = ([(row["prompt"], row["answer"]) for row in split] for split in (task.validation, task.test))
    if not rows:
        raise UserError(f"task {task.name}: train.validation eval needs an eval split; give eval.json, or a share")
    if sorted(rows) == sorted(test):
        raise UserError(
            f"task {task.name}: eval and test are the same rows, so what is chosen by one would be scored on itself; "
            "set train.validation to a share of the training rows, such as 0.05"
        )
    return task


def _key(row: Row) -> str:
    """What two rows that ask the same have in common: the prompt or, of raw text, the text."""
    return str(row["prompt"] or row["answer"])
