"""Trains two tasks in each threshold mode under one ZeRO stage; rank 0 saves losses, gates and merged weights.

torchrun --nproc_per_node 2 tests/distributed/worker.py MODEL_FOLDER STAGE OUTPUT
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import load_config
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.launch import start
from codyra_llm.engine.train import train_task
from codyra_llm.engine.zero import add_delta, parameter_count, placement, readable
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_model
from codyra_llm.plan import plan_run

MODES = {
    "importance": {},
    "budget": {"adapter.threshold_strength": 0.8},
    "reference": {"adapter.threshold_strength": 0.2, "adapter.ramp_levels": 4},
}


def train(model_folder: str, stage: int, mode: str, ds_config: str) -> dict:
    """One run of two tasks."""
    config = load_config(
        None,
        {
            "model.name_or_path": model_folder,
            "order": ["FOMC", "NumGLUE-cm"],
            "adapter.rank": 4,
            "adapter.threshold_mode": mode,
            "deepspeed": ds_config,
            "train.global_batch_size": 8,
            "train.per_device_train_batch_size": 2,
            "train.num_train_epochs": 2,
            "train.learning_rate": 0.02,
            "data.max_test_examples": 5,
            "evaluate.max_new_tokens": 4,
            "evaluate.batch_size": 2,
            **MODES[mode],
        },
    )
    world = start()
    plan = plan_run(config, world)
    place = placement(complete(plan.deepspeed_json, config.train, world.size), world)
    model = load_model(model_folder, place=place)
    count = parameter_count(model)
    method = METHODS[config.method](config)
    result: dict = {"losses": [], "live_rank": [], "gates": [], "ranks": [], "scores": []}
    for task, batches, test in zip(plan.stream, plan.batches, plan.test_examples, strict=True):
        ready = method.prepare(model, task.name, batches.total_steps)
        steps = train_task(model, ready.optimizer, ready.schedule, batches, config.train, plan.deepspeed_json, world)
        result["losses"] += [step.loss for step in steps]
        result["live_rank"] += [step.live_rank for step in steps]
        result["gates"].append(torch.cat([layer.gate.detach() for _, layer in gated_layers(model)]))
        result["ranks"] += [dataclasses.astuple(module) for module in method.finish(model, add_delta)]
        assert parameter_count(model) == count
        with readable(model, "always", world):
            (scores,) = evaluate_tasks(model, plan.tokenizer, [task], [test], config.evaluate, world)
        result["scores"].append((scores.nll, [row["prediction"] for row in scores.rows]))
    with readable(model, "always", world):
        result["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
    return result


def main(model_folder: str, stage: int, output: str) -> None:
    """All modes; a persistence threshold of 0 makes stage 3 partition even the smallest weight."""
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    with tempfile.TemporaryDirectory() as folder:
        ds_config = Path(folder) / "ds.json"
        ds_config.write_text(json.dumps({"zero_optimization": zero}))
        results = {mode: train(model_folder, stage, mode, str(ds_config)) for mode in MODES}
    if start().is_main:
        torch.save(results, output)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
