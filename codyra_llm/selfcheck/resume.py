"""Checks resuming: a run of the nano model that is killed within a task and resumed, against an uninterrupted run."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting, bounded
from codyra_llm.selfcheck.processes import run_apart

ALLOWED = {"cpu": 0.0, "cuda": 1e-3}  # nats: the order of sums on a GPU is not fixed
KILLED_BEFORE = 6  # the optimizer step, counted from 1


def killed(setting: Setting) -> Iterator[Row]:
    """Compares the losses of both runs, and checks the exit statuses."""
    whole, broken = setting.scratch / "whole", setting.scratch / "broken"
    statuses = [
        _run_apart(setting, folder, strikes) for folder, strikes in ((whole, False), (broken, True), (broken, False))
    ]
    yield {"what": "how the runs ended", "found": str(statuses), "passed": statuses == [0, -signal.SIGKILL, 0]}
    losses, expected = (_losses(folder) for folder in (broken, whole))
    yield {"what": "steps", "found": len(losses), "passed": len(losses) == len(expected)}
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    yield bounded("largest difference of a loss, nats", difference, ALLOWED[setting.device])


def run(folder: Path, strikes: bool) -> None:
    """Runs a task; with `strikes` the process kills itself before step `KILLED_BEFORE`."""
    from codyra_llm.config import load_config
    from codyra_llm.report.reporter import Reporter
    from codyra_llm.workflows import train

    report, count = Reporter.step, 0

    def step(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if strikes and count == KILLED_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        report(*arguments)

    Reporter.step = step  # type: ignore[method-assign,assignment]
    settings = {
        "model.name_or_path": "nano",
        "output_dir": str(folder),
        "task_file": "tasks/nano/nano.yaml",
        "data_dir": "tasks/nano/rows",
        "order": ["stance"],
        "tracking": [],
        "data.max_train_examples": 32,
        "data.max_test_examples": 4,
        "train.global_batch_size": 4,
        "train.per_device_train_batch_size": 4,
        "train.num_train_epochs": 1,
        "train.learning_rate": 3e-3,
        "train.checkpoint_every": 2,
        "evaluate.tasks": "last",
    }
    train.run(load_config(None, settings))


def _run_apart(setting: Setting, folder: Path, strikes: bool) -> int | None:
    target, log = f"{__name__}:run", setting.scratch / "runs.log"
    return run_apart(target, [folder, strikes], log, setting.left, fork=setting.small)


def _losses(folder: Path) -> list[float]:
    """Returns the loss of each step, from results.json."""
    (task,) = json.loads((folder / "results.json").read_text())["losses"]
    return list(map(float, task["loss"]))
