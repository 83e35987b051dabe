"""Trains two tasks in given ways of running; rank 0 saves losses, gates and merged weights of each."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import apply_deltas, stacked
from codyra_llm.config import load_config
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.passes import measure_before, passes_before
from codyra_llm.engine.train import train_task
from codyra_llm.engine.zero import add_delta, gathered_for_inference, load_base, parameter_count, whole_weights
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.generation.generate import answer_questions
from codyra_llm.methods import METHODS
from codyra_llm.models import head
from codyra_llm.models.load import original_weights
from codyra_llm.planning.run_plan import plan_run
from codyra_llm.workflows.retention import prepare_retention, protect
from tests.conftest import REPOSITORY, write_from_every_rank
from tests.distributed.extra_methods import register
from tests.distributed.forked import fork_ranks

register()

MODES = {
    "importance": {},
    "budget": {"adapter.threshold_strength": 0.8},
    "reference": {"adapter.threshold_strength": 0.2, "adapter.ramp_levels": 4},
}


def train(way: dict[str, Any], model_folder: str, output: str) -> None:
    """Runs one rank that trains two tasks; rank 0 saves the results."""
    config = load_config(
        None,
        {
            "model.name_or_path": model_folder,
            "model.dtype": way["dtype"],
            "model.quantization": way.get("quantization"),
            "order": ["FOMC", "NumGLUE-cm"],
            "adapter.rank": way.get("rank", 4),
            "adapter.threshold_mode": way["mode"],
            "deepspeed": deepspeed_json(way["zero"], Path(output).with_suffix(".json")),
            "train.global_batch_size": 8,
            "train.per_device_train_batch_size": way["micro"],
            "train.num_train_epochs": 1,
            "train.learning_rate": 0.005,
            "train.adam_bits": way.get("adam_bits", 32),
            "data.max_test_examples": 5,
            "evaluate.max_new_tokens": 4,
            "evaluate.batch_size": 2,
            **MODES[way["mode"]],
            **way.get("settings", {}),
        },
    )
    world = start()
    head.LOGITS_BYTES = way.get("logits_bytes", head.LOGITS_BYTES)
    plan = plan_run(config, world)
    model, original = load_base(plan.source, config, plan.deepspeed_json, world, print), original_weights(plan.source)
    if way["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = parameter_count(model)
    method = METHODS[config.method](config)
    merged: dict[str, list[Any]] = {}  # the updates so far
    result: dict[str, Any] = {"losses": [], "live_rank": [], "gates": [], "ranks": [], "scores": [], "penalty": []}
    result["divergence"] = []
    for task, batches, test in zip(plan.stream, plan.batches, plan.test_examples, strict=True):
        how = (plan.source.tokenizer, method.adapter, batches, config.seed, "auto", world)
        before = functools.partial(passes_before, model, *how)
        measure_before(method, batches.own, before)
        retention, protected = prepare_retention(config.retention, batches, before)
        ready = method.prepare(model, task.name, batches.total_steps)
        protect(model, protected, config.retention.protected_softly)
        ways = (batches, config.train, plan.deepspeed_json, world)
        steps = train_task(model, ready.optimizer, ready.schedule, *ways, hooks=method, retention=retention)
        result["losses"] += [step.loss for step in steps]
        result["penalty"] += [step.penalty for step in steps]
        result["divergence"] += [{**step.divergences, "factor": step.retention_factor} for step in steps]
        result["live_rank"] += [step.live_rank for step in steps]
        result["gates"].append(torch.cat([layer.gate.detach() for _, layer in gated_layers(model)]))
        report, updates = method.finish(model)
        if config.model.quantization:
            for name, factors in updates.items():
                merged.setdefault(name, []).append(factors)
                B, A = stacked(merged[name])
                add_delta(model.get_submodule(name), B, A, original(f"{name}.weight"))
        else:
            apply_deltas(model, updates, add_delta)
        result["ranks"] += [dataclasses.astuple(module) for module in report]
        assert parameter_count(model) == count
        model.eval()
        with gathered_for_inference(model, "always", world), method.serving(model, task.name):
            ask = functools.partial(answer_questions, model, plan.source.tokenizer, ranks=world)
            (scores,) = evaluate_tasks([task], [test], config.evaluate, ask)
        result["scores"].append((scores.nll, [row["prediction"] for row in scores.rows]))
    result["weights"] = {name: weight.clone() for name, weight in whole_weights(model)}
    result["kept"] = method.kept
    if world.is_main:
        torch.save(result, output)


def deepspeed_json(zero: str, file: Path) -> str | None:
    """Writes the shipped configuration to `file`, at stage 3 with all weights partitioned; None for stage 0."""
    if zero == "zero0":
        return None
    content = json.loads((REPOSITORY / "ds_configs" / f"{zero}.json").read_text())
    if content["zero_optimization"]["stage"] == 3:
        content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    write_from_every_rank(file, json.dumps(content))
    return str(file)


def run_way(way: dict[str, Any], model: str, output: str) -> list[int]:
    """Forks the ranks of one way of running."""

    def work(rank: int) -> int:
        train(way, model, output)
        return 0

    return fork_ranks(way["ranks"], work, output + ".log")


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"way": {...}, "model": folder, "output": file}; returns the exit statuses of their ranks."""
    return [run_way(**job) for job in jobs]
