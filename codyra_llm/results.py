"""results.json: what a run knows of itself before its first step; the run fills in the rest."""

import dataclasses
import importlib.metadata
import platform
import sys
from typing import Any

from torch import nn

from codyra_llm.config import RunConfig
from codyra_llm.engine.ds_config import zero_stage
from codyra_llm.engine.zero import parameter_count
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.planning.run_plan import RunPlan
from codyra_llm.text import scrub

SCHEMA_VERSION = 1
OF_A_SESSION = ("command", "versions", "config", "world_size", "zero_stage")  # the last one's stand in the results
SHOWN = ("command", "world_size", "zero_stage")  # what `sessions` says of each time that the run was gone on with
PACKAGES = (
    "codyra_llm",
    "torch",
    "transformers",
    "deepspeed",
    "datasets",
    "bitsandbytes",
    "rapidfuzz",
    "rouge-score",
    "lm-eval",
)


def new_results(config: RunConfig, plan: RunPlan, model: nn.Module, world_size: int) -> dict[str, Any]:
    """Versions, configuration, data and hashes, and an empty matrix of each kind (rows: base, then after each task)."""
    tasks, stream = len(plan.stream), plan.stream
    empty: list[list[float | None]] = [[None] * tasks for _ in range(tasks + 1)]
    return {
        **of_a_model(config, plan.deepspeed_json, model, world_size),
        "data": {
            "stream": stream.name,
            "version": config.data.version or stream.version,
            "tasks": [
                {
                    "task": task.name,
                    "train_rows": len(batches.own),
                    "replayed_rows": len(batches.examples) - len(batches.own),
                    "dropped_train_rows": len(task.train) - len(batches.own),
                    "test_rows": len(task.test),
                    "steps": batches.total_steps,
                    "sha256": task.files,
                }
                for task, batches in zip(stream, plan.batches, strict=True)
            ],
        },
        "tasks": stream.names,
        "matrix": [list(row) for row in empty],
        "matrices": {variant: [list(row) for row in empty] for variant in VARIANTS},
        "answer_nll": [list(row) for row in empty],
        "general": {"items": {suite.name: suite.items for suite in plan.suites}, "scores": {}, "delta": {}},
        "sessions": [],
        "seconds": 0.0,
        "checkpoint_seconds": 0.0,
        "peak_memory_bytes": 0,
        "losses": [],
        "ranks": [],
        "phases": [],
    }


def of_a_model(config: RunConfig, deepspeed_json: dict[str, Any], model: nn.Module, world_size: int) -> dict[str, Any]:
    """What any results say of how they came about: command, versions, configuration, model."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": [scrub(argument) for argument in sys.argv],
        "versions": versions(),
        "config": dataclasses.asdict(config),
        "seed": config.seed,
        "world_size": world_size,
        "zero_stage": zero_stage(deepspeed_json),
        "model": {
            "name": config.model.name_or_path,
            "architecture": type(model).__name__,
            "parameters": parameter_count(model),
        },
    }


def taken_up(earlier: dict[str, Any], session: dict[str, Any], position: tuple[int, str], step: int) -> dict[str, Any]:
    """Results of a resumed run; the new session (`session`: its own) may use other hardware settings."""
    means = {key: session[key] for key in OF_A_SESSION}
    continued = {"task": position[0], "phase": position[1], "step": step, **{key: means[key] for key in SHOWN}}
    return {**earlier, **means, "sessions": [*earlier["sessions"], continued]}


def versions() -> dict[str, str]:
    """Of Python and of every package that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
