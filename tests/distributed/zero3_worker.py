"""Measurements on two ranks at ZeRO stage 3, with even the smallest weight partitioned; rank 0 saves them.

torchrun --nproc_per_node 2 tests/distributed/zero3_worker.py FOLDER

FOLDER contains the models that test_zero3.py made; results are written to FOLDER/seen.pt.
"""

import functools
import json
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import RunConfig, load_config
from codyra_llm.distributed.ranks import Ranks, all_gather, start
from codyra_llm.engine import train
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.zero import (
    add_delta,
    gathered_for_inference,
    placement,
    unpartition_branches,
    weight_layout,
    whole_weights,
)
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.example import Example
from codyra_llm.generation.generate import Question, answer_questions
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_model, original_weights
from codyra_llm.models.save import save_model
from codyra_llm.planning.run_plan import plan_run
from codyra_llm.workflows.train import run
from tests.conftest import write_from_every_rank

LARGEST_FILES = (50_000, 10**9)


def saved_folder(name: str, dtype: str, largest_file: int) -> str:
    """Returns the folder name of a saved model."""
    return f"saved-{name}-{dtype}-{largest_file}"


class MovedBytes(TorchDispatchMode):
    """Counts the bytes that collectives write on this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            written = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            self.total += sum(tensor.nbytes for tensor in written)
        return func(*args, **(kwargs or {}))


def peak_growth(action: Callable[[], object]) -> int:
    """Returns how far the peak of resident memory during `action` exceeds the resident memory before it, in bytes."""

    def status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    action()
    return status("VmHWM") - before


def config_for(folder: Path, name: str, **fields: Any) -> RunConfig:
    """Returns the configuration of a run of two short tasks."""
    ds_config = folder / "zero3.json"
    section = {"stage": 3, "stage3_param_persistence_threshold": 0}
    write_from_every_rank(ds_config, json.dumps({"zero_optimization": section}))
    values = {
        "model.name_or_path": str(folder / name),
        "order": ["FOMC", "NumGLUE-cm"],
        "adapter.rank": 4,
        "deepspeed": str(ds_config),
        "output_dir": str(folder / "run"),
        "train.global_batch_size": 8,
        "train.per_device_train_batch_size": 2,
        "train.num_train_epochs": 1,
        "train.learning_rate": 0.02,
        "data.max_train_examples": 32,
        "data.max_test_examples": 5,
        "evaluate.max_new_tokens": 6,
        "evaluate.batch_size": 2,
    }
    return load_config(None, values | fields)


def loading(folder: Path, world: Ranks) -> dict[str, Any]:
    """Loads every model in parts; compares it with the model that transformers loads."""
    config = config_for(folder, "llama")
    place = placement(complete(json.loads(Path(config.deepspeed).read_text()), config.train, world.size), world)
    big, tokenizer = str(folder / "big"), plan_run(config, world).source.tokenizer
    kept: list[Any] = []
    seen: dict[str, Any] = {
        "growth in parts": all_gather(peak_growth(lambda: kept.append(load_model(big, place=place)))),
        "growth whole": all_gather(peak_growth(lambda: kept.append([w.clone() for w in load_model(big).parameters()]))),
    }
    kept.clear()
    for name in ("llama", "llama-shards", "gemma", "gemma-shards", "gemma3-renamed", "llama-decoder"):
        for dtype in ("float32", "bfloat16"):
            notes: list[str] = []
            model = load_model(str(folder / name), dtype, place=place, warn=notes.append)
            expected = AutoModelForCausalLM.from_pretrained(folder / name, dtype=getattr(torch, dtype))
            held = sum(weight.ds_tensor.numel() for weight in model.parameters())  # type: ignore[attr-defined]
            whole = dict(whole_weights(model))
            of_expected = dict(whole_weights(expected))
            seen[name, dtype] = {
                "equal": whole.keys() == of_expected.keys()
                and all(torch.equal(whole[key], of_expected[key]) for key in whole if world.is_main),
                "buffers": all(
                    torch.equal(ours, theirs) for ours, theirs in zip(model.buffers(), expected.buffers(), strict=True)
                ),
                "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
                "share": all_gather(held / sum(weight.numel() for weight in expected.parameters())),
                "empty": all(weight.numel() == 0 for weight in model.parameters()),
                "notes": notes,
            }
            if name in ("llama", "gemma", "gemma3-renamed"):
                for largest in LARGEST_FILES:
                    save(model, tokenizer, folder / saved_folder(name, dtype, largest), largest, world)
    try:
        load_model(str(folder / "llama-incomplete"), place=place)
    except UserError as error:
        seen["incomplete"] = str(error)
    return seen


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, largest_file: int, world: Ranks
) -> None:
    """Saves a model as a run does."""
    weights = whole_weights(model)
    if world.is_main:
        save_model(model, weight_layout(model), weights, tokenizer, folder, "# card", largest_file)
    deque(weights, maxlen=0)


@contextmanager
def branches_left_partitioned() -> Iterator[None]:
    """Within the block, train_task leaves A, B and gate partitioned by DeepSpeed and does not check them."""
    with (
        patch.object(train, "unpartition_branches", lambda model: None),
        patch.object(train, "_check_branches", lambda task, model: None),
    ):
        yield


def learning(folder: Path, world: Ranks) -> dict[str, Any]:
    """Evaluates in every way, trains, counts the bytes moved until the branches are merged, evaluates, trains again."""
    config = config_for(folder, "llama")
    plan = plan_run(config, world)
    model = load_model(
        str(folder / "llama"), place=placement(complete(plan.deepspeed_json, config.train, world.size), world)
    )
    method = METHODS[config.method](config)
    seen: dict[str, Any] = {"scores": [], "in step": {}}
    original = original_weights(str(folder / "llama"))
    learned: dict[str, Any] = {}

    def evaluate() -> None:
        scores = {}
        for how in ("always", "auto", "never"):
            with gathered_for_inference(model, how, world) as synced:
                ask = functools.partial(answer_questions, model, plan.source.tokenizer, ranks=world, synced=synced)
                scored = evaluate_tasks(plan.stream.tasks, plan.test_examples, config.evaluate, ask)
            seen["in step"][how] = synced
            seen["trainable through", how] = not any(weight.is_inference() for weight in model.parameters())
            scores[how] = [(task.nll, [row["prediction"] for row in task.rows]) for task in scored]
        seen["scores"].append(scores)

    # rank 0 has a prompt of one token, so it needs no pass over the tokens before the last one
    questions = [Question(Example([5] * (1 + 4 * world.rank), [7, 8]), max_new_tokens=3 + 2 * world.rank)]
    for how in ("always", "never"):
        with gathered_for_inference(model, how, world) as synced:
            (answered,) = answer_questions(model, plan.source.tokenizer, questions, synced=synced)
        seen["unequal", how] = all_gather((answered.loss, answered.text))
    evaluate()
    for task, batches in zip(plan.stream, plan.batches, strict=True):
        ready = method.prepare(model, task.name, batches.total_steps)
        with branches_left_partitioned():
            train.train_task(model, ready.optimizer, ready.schedule, batches, config.train, plan.deepspeed_json, world)
        branches = [(layer.A, layer.B, layer.gate) for _, layer in gated_layers(model)]
        seen["branch bytes"] = sum(4 * factor.ds_numel for branch in branches for factor in branch)  # type: ignore[attr-defined]
        base = next(gated_layers(model))[1].base.weight
        with MovedBytes() as moved:
            unpartition_branches(model)
            for name, (B, A) in method.finish(model)[1].items():
                earlier_B, earlier_A = learned.get(name, (B[:, :0], A[:0]))
                learned[name] = torch.cat([earlier_B, B], dim=1), torch.cat([earlier_A, A])
                add_delta(model.get_submodule(name), *[*learned[name], original(f"{name}.weight")])
        with MovedBytes() as control, deepspeed.zero.GatheredParameters([base]):
            pass
        seen |= {"moved": moved.total, "control": control.total, "base bytes": 4 * base.ds_numel}
        evaluate()
    of_one_rank = load_model(str(folder / "llama"))
    for name, factors in learned.items():
        add_delta(of_one_rank.get_submodule(name), *[*factors, original(f"{name}.weight")])
    expected = dict(whole_weights(of_one_rank))
    seen["merged alike"] = [
        torch.equal(weight, expected[name]) for name, weight in whole_weights(model) if world.is_main
    ]
    return seen


class Keeping(torch.autograd.Function):
    """Saves the gathered weight for the backward pass, as a control."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, weight: torch.Tensor) -> Any:
        ctx.save_for_backward(weight)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, d_output: torch.Tensor) -> Any:
        return d_output, None


def alive_between(folder: Path, world: Ranks, impl: str, keeping: bool) -> dict[str, Any]:
    """Trains two steps; counts the gathered base weights, and those still alive when each backward pass begins."""
    config = config_for(folder, "llama", **{"adapter.impl": impl, "data.max_train_examples": 16})
    released = {"stage3_prefetch_bucket_size": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    plan = plan_run(config, world)
    plan.deepspeed_json["zero_optimization"] |= released
    place = placement(complete(plan.deepspeed_json, config.train, world.size), world)
    model = load_model(str(folder / "llama"), place=place)
    ready = METHODS[config.method](config).prepare(model, "FOMC", plan.batches[0].total_steps)
    gathered: list[StorageWeakRef] = []
    seen: dict[str, Any] = {"gathered": 0, "alive": 0, "projections": len(ready.wrapped)}

    def on_base(base: torch.nn.Module, inputs: Any, output: torch.Tensor) -> Any:
        assert base.weight.numel() == base.weight.ds_numel
        gathered.append(StorageWeakRef(base.weight.untyped_storage()))
        return Keeping.apply(output, base.weight.data) if keeping else None

    for _, layer in gated_layers(model):
        layer.base.register_forward_hook(on_base)
    backward = deepspeed.DeepSpeedEngine.backward

    def look(engine: Any, loss: torch.Tensor) -> Any:
        seen["gathered"] += len(gathered)
        seen["alive"] += sum(not storage.expired() for storage in gathered)
        gathered.clear()
        return backward(engine, loss)

    deepspeed.DeepSpeedEngine.backward = look
    try:
        train.train_task(
            model, ready.optimizer, ready.schedule, plan.batches[0], config.train, plan.deepspeed_json, world
        )
    finally:
        deepspeed.DeepSpeedEngine.backward = backward
    return seen


def full_disk(folder: Path, world: Ranks) -> list[str]:
    """Returns the error of each rank when rank 0 cannot write the whole model."""
    if world.is_main:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing beyond the limit raises OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    told = ""
    try:
        run(config_for(folder, "llama", **{"evaluate.tasks": "last", "evaluate.gather": "never"}))
    except UserError as error:
        told = str(error)
        print(f"rank {world.rank}: {told}", flush=True)  # an error at another point would leave ranks out of step
    if world.is_main:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return all_gather(told)


def main(folder: Path) -> None:
    """Runs all measurements in one start of two processes."""
    world = start()
    seen: dict[str, Any] = {"loading": loading(folder, world), "learning": learning(folder, world)}
    seen["between"] = {
        (impl, keeping): alive_between(folder, world, impl, keeping)
        for impl, keeping in (("fused", False), ("reference", False), ("fused", True))
    }
    seen["full disk"] = full_disk(folder, world)
    if world.is_main:
        torch.save(seen, folder / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
