"""Rows to validate on during training: a split of their own, or some of the training rows."""

import random

from codyra_llm.data.stream import Task
from codyra_llm.errors import UserError

Setting = str | float | None  # "eval", a share of the training rows below 1, a number of them, or none


def with_validation(task: Task, setting: Setting, seed: int) -> Task:
    """Returns the task with validation rows, as `train.validation` specifies.

    For a share or number they are drawn, always the same ones, from training rows with distinct prompts that are not in
    the test split; no row with such a prompt is trained on.

    Raises:
        UserError: there are no such rows, or the task would be validated on its test split.
    """
    if setting is None:
        return task
    if setting == "eval":
        return _checked(task)
    keys = task.keys("train")
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    tested = set(task.keys("test"))
    usable = [number for key, number in first.items() if key not in tested]
    assert not isinstance(setting, str)
    size = round(setting * len(usable)) if setting < 1 else int(setting)
    if not 0 < size < len(usable):
        raise UserError(
            f"task {task.name}: train.validation {setting:g} would take {size} of {len(usable)} training rows with "
            "prompts of their own; some must be left to learn from"
        )
    chosen = sorted(random.Random(f"{seed}/{task.name}/validation").sample(usable, size))
    taken = {keys[number] for number in chosen}
    return task.parted([number for number, key in enumerate(keys) if key not in taken], chosen)


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
