"""Runs of two picture domains, each way of running in its own folder."""

from functools import partial
from pathlib import Path
from typing import Any

from codyra_llm import run
from tests.clip import clip_run, color_stream
from tests.distributed.forked import fork_ranks
from tests.distributed.worker import deepspeed_json


def work(way: dict[str, Any], model: str, output: str, rank: int) -> int:
    """One rank's run."""
    settings = {
        "deepspeed": way["deepspeed"],
        "train.per_device_train_batch_size": way["micro"],
        "evaluate.batch_size": way["micro"],
        **way.get("settings", {}),
    }
    run(clip_run(Path(model), Path(output), **settings), color_stream(8))
    return 0


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Each job: {"way": {...}, "model": folder, "output": folder}."""
    return [run_way(**job) for job in jobs]


def run_way(way: dict[str, Any], model: str, output: str) -> list[int]:
    """Forks the ranks of one way."""
    way = {**way, "deepspeed": deepspeed_json(way["zero"], Path(f"{output}.json"))}
    return fork_ranks(way["ranks"], partial(work, way, model, output), f"{output}.log")
