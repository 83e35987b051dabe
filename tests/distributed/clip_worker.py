"""Runs of two picture domains, each way of running in its own folder; some are first killed on one rank."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from codyra_llm import run
from codyra_llm.report.reporter import Reporter
from tests.clip import clip_run, color_stream
from tests.distributed.forked import fork_ranks
from tests.distributed.worker import deepspeed_json


def work(way: dict[str, Any], model: str, output: str, rank: int, killed_at: int = 0) -> int:
    """Runs one rank; with `killed_at`, it exits with status 9 right after that optimizer step."""
    step = Reporter.step

    def act(self: Reporter, report: Any, global_step: int, progress: Any) -> None:
        step(self, report, global_step, progress)
        if global_step == killed_at:
            os._exit(9)

    Reporter.step = act
    settings = {
        "train.checkpoint_every": 2,
        "deepspeed": way["deepspeed"],
        "train.per_device_train_batch_size": way["micro"],
        "evaluate.batch_size": way["micro"],
        **way.get("settings", {}),
    }
    run(clip_run(Path(model), Path(output), **settings), color_stream(8))
    return 0


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"way": {...}, "model": folder, "output": folder}; returns the exit statuses of their ranks."""
    return [run_way(**job) for job in jobs]


def run_way(way: dict[str, Any], model: str, output: str) -> list[int]:
    """Forks the ranks of one way of running, after a killed run on one rank if `killed_at` is given."""
    way = {**way, "deepspeed": deepspeed_json(way["zero"], Path(f"{output}.json"))}
    if "killed_at" in way:
        first = {**way, "deepspeed": None, "micro": 8}
        assert fork_ranks(1, partial(work, first, model, output, killed_at=way["killed_at"]), f"{output}.log") == [9]
    return fork_ranks(way["ranks"], partial(work, way, model, output), f"{output}.log")
