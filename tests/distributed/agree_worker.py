"""Starts a run on two ranks; the second has other settings, data or weights than the first."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from codyra_llm import run
from codyra_llm.command import main
from codyra_llm.data.stream import TaskStream
from codyra_llm.models.source import Source
from tests.distributed.forked import fork_ranks
from tests.e2e.test_run import tiny_config

SETTINGS: dict[str, Any] = {
    "seed": {"seed": 5},
    "rate": {"train.learning_rate": 0.02},
    "micro batch": {"train.per_device_train_batch_size": 2},
}
SHORT = {"order": ["FOMC"], "train.num_train_epochs": 1, "data.max_train_examples": 16, "data.max_test_examples": 2}


def start(job: dict[str, Any], rank: int) -> int:
    """Runs one rank."""
    what = job["what"] if rank else "nothing"
    output = Path(job["output"])
    config = tiny_config(Path(job["model"]), output, **SHORT, **{"evaluate.tasks": "last"}, **SETTINGS.get(what, {}))
    rows = [{"prompt": f"What is {n}?", "answer": "so" if what == "data" and n == 3 else "it"} for n in range(16)]
    if what == "weights":
        os.environ["LOCAL_RANK"] = "0"  # as on a second host
        Source.sha256 = "0" * 64  # type: ignore[assignment]
    stream = TaskStream.from_rows({"FOMC": {"train": rows, "test": rows[:2]}})
    main(lambda: None if run(config, stream) else 0)
    return 0


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"model": folder, "output": folder, "what": what differs, "log": file}; returns exit statuses."""
    return [fork_ranks(2, partial(start, job), job["log"]) for job in jobs]
