"""Runs the continual run in ranks that are interrupted at named points.

A session is {"config": {dotted name: value}, "ranks": 1, "strike": strike or null, "watch": file or null}. A strike is
[rank, "point:n", how]: it happens just before that rank calls the function of a point (POINTS) for the n-th time; `how`
is the name of a signal, or "stop file". With "watch", rank 0 writes the points that it passed, in order, to that file.
The result of a session is the list of its ranks' exit statuses.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codyra_llm.command import main
from codyra_llm.config import load_config
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.engine.checkpoint import Checkpoints
from codyra_llm.engine.zero import add_delta
from codyra_llm.files import replace_folder, write_text
from codyra_llm.ledger.entry import write_entry
from codyra_llm.models.save import save_model
from codyra_llm.report.folder import OutputFolder
from codyra_llm.report.reporter import Reporter
from codyra_llm.workflows import train
from tests.distributed.forked import fork_ranks

POINTS: dict[str, Callable[..., Any]] = {
    "training step": Reporter.step,
    "stop check": StopRequest.agreed,
    "round of answers": OutputFolder.append_answers,
    "checkpoint": Checkpoints.write,
    "folder": replace_folder,  # twice for each: before it is created, and before the complete folder is renamed
    "file": write_text,
    "ledger entry": write_entry,
    "merged weight": add_delta,
    "saved model": save_model,
}
NAMES = {inspect.unwrap(function).__code__: name for name, function in POINTS.items()}


def session(
    config: dict[str, Any], ranks: int = 1, strike: list[Any] | None = None, watch: str | None = None
) -> list[int]:
    """Runs the ranks of a session; returns their exit statuses."""

    def work(rank: int) -> int:
        passed: list[str] = []
        if strike and strike[0] == rank:
            sys.setprofile(_counter(passed, strike[1], _act(strike[2], config["output_dir"])))
        elif watch and rank == 0:
            sys.setprofile(_counter(passed))
        try:
            main(lambda: None if train.run(load_config(None, config)) else 0)
        finally:
            sys.setprofile(None)
            if watch and rank == 0:
                Path(watch).write_text("\n".join(passed))
        return 0

    return fork_ranks(ranks, work, config["output_dir"] + ".log")


def _act(how: str, output: str) -> Callable[[], None]:
    if how == "stop file":
        return (Path(output) / "stop").touch
    return lambda: os.kill(os.getpid(), signal.Signals[how])


def _counter(passed: list[str], moment: str = "", act: Callable[[], None] | None = None) -> Callable[..., Any]:
    point, _, number = moment.partition(":")

    def count(frame: Any, event: str, argument: Any) -> None:
        name = NAMES.get(frame.f_code) if event == "call" else None
        if name:
            passed.append(name)
            if act and name == point and passed.count(name) == int(number):
                act()

    return count


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs sessions; returns the exit statuses of the ranks of each."""
    return [session(**wanted) for wanted in jobs]
