"""Trains two picture domains with many methods in one start of the ranks; rank 0 saves losses and merged weights."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch

from codyra_llm.adapter.merging import apply_deltas
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.passes import measure_before, passes_before
from codyra_llm.engine.state import TaskState, taken
from codyra_llm.engine.train import GATHERED, StepReport, train_task
from codyra_llm.engine.zero import add_delta, load_base, whole_weights
from codyra_llm.methods import METHODS
from codyra_llm.planning.run_plan import plan_run
from tests.clip import clip_run, color_stream
from tests.distributed.forked import fork_ranks
from tests.distributed.worker import deepspeed_json

STEPS, INTERRUPTED = 3, 2  # steps of a task; steps of the second task before an interruption


def train(way: dict[str, Any], settings: dict[str, Any], model_folder: str, file: str) -> dict[str, Any]:
    """Trains two domains; with `interrupted`, the second is resumed from a state in its middle."""
    settings, world = dict(settings), start()
    interrupted = settings.pop("interrupted", False)
    given = {"deepspeed": deepspeed_json(way["zero"], Path(file)), "train.per_device_train_batch_size": way["micro"]}
    config = clip_run(Path(model_folder), Path(file), **given, **settings)
    plan = plan_run(config, world, color_stream(STEPS))
    model = load_base(plan.source, config, plan.deepspeed_json, world, print, plan.domain.check_model)
    method, learning = METHODS[config.method](config), plan.domain.learning
    result: dict[str, Any] = {"losses": [], "penalty": []}

    def learn(batches: Any, resumed: TaskState | None = None, at: list[Any] | None = None) -> list[StepReport]:
        over = functools.partial(passes_before, module=learning.module, passes=learning.passes)
        how = (plan.source.tokenizer, method.adapter, batches, config.seed, "auto", world)
        measure_before(method, batches.own, functools.partial(over, model, *how))
        ready = method.prepare(model, batches.task, batches.total_steps)
        method.gathered = taken(resumed, GATHERED)

        def on_step(report: StepReport, read: Any) -> None:
            if at is not None and report.step + 1 == INTERRUPTED:
                at.append(TaskState(INTERRUPTED, {name: tensor.clone() for name, tensor in read().items()}))

        ways = (batches, config.train, plan.deepspeed_json, world, on_step, resumed)
        return train_task(model, ready.optimizer, ready.schedule, *ways, hooks=method, learning=learning)

    for number, batches in enumerate(plan.batches):
        cut: list[TaskState] = []
        kept = copy.deepcopy(method.kept)
        steps = learn(batches, at=cut if interrupted and number else None)
        if cut:
            method.finish(model)
            method = METHODS[config.method](config)
            method.kept = kept
            steps[INTERRUPTED:] = learn(batches, cut[0])
        result["losses"] += [step.loss for step in steps]
        result["penalty"] += [step.penalty for step in steps]
        _, updates = method.finish(model)
        apply_deltas(model, updates, add_delta)
    result["weights"] = {name: weight.clone() for name, weight in whole_weights(model)}
    return result


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"way": {...}, "model": folder, "output": file, "runs": {name: settings}}; returns exit statuses."""

    def work(job: dict[str, Any], rank: int) -> int:
        output, found = job["output"], {}
        for name, settings in job["runs"].items():
            found[name] = train(job["way"], settings, job["model"], f"{output}.json")
        if rank == 0:
            torch.save(found, output)
        return 0

    return [fork_ranks(job["way"]["ranks"], functools.partial(work, job), f"{job['output']}.log") for job in jobs]
