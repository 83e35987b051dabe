"""A run on two ranks of which the second exits or hangs in the middle."""

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from codyra_llm import run
from codyra_llm.command import main
from codyra_llm.engine.loss import AnswerLoss
from tests.distributed.forked import fork_ranks
from tests.e2e.test_run import tiny_config

SHORT = {"order": ["FOMC"], "train.num_train_epochs": 1, "data.max_train_examples": 24, "data.max_test_examples": 2}
COLLECTIVE_SECONDS, STANDS_SECONDS = 4, 25


def start(job: dict[str, Any], rank: int) -> int:
    """Runs one rank."""
    if rank:
        parent, forward, calls = os.getpid(), AnswerLoss.forward, []
        if not os.fork():  # kills the rank that hangs, after the other had time to end
            time.sleep(STANDS_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent, signal.SIGKILL)
            os._exit(0)

        def act(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                os.kill(parent, signal.SIGSTOP) if job["how"] == "stops" else os._exit(3)
            return forward(*arguments)

        AnswerLoss.forward = act  # type: ignore[assignment]
    settings = {**SHORT, "evaluate.tasks": "last", "collective_seconds": COLLECTIVE_SECONDS}
    main(lambda: None if run(tiny_config(Path(job["model"]), Path(job["output"]), **settings)) else 0)
    return 0


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"model": folder, "output": folder, "log": file, "how": "stops" or "exits"}; returns exit statuses."""
    return [fork_ranks(2, partial(start, job), job["log"]) for job in jobs]
