"""Trains three steps on two ranks in one way of running; each rank writes the traffic of the last step."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from codyra_llm.config import load_config
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.train import StepReport, train_task
from codyra_llm.engine.zero import placement
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_model
from tests.distributed.forked import fork_ranks

AGREED = 64  # at most so many bytes: all-reduces of norms, sums of losses and stop requests, not of gradients


class Received(TorchDispatchMode):
    """Counts the ring collectives of this rank, one of two, and the bytes that it receives, by kind."""

    def __init__(self, persistent: int) -> None:
        super().__init__()
        self.persistent, self.of_step = persistent, dict[str, list[int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._note(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        if name == "allreduce_":
            size = args[0][0].nbytes
            self._add("gradients" if size > AGREED else "agreed", size)  # a half is reduced, the other gathered
        elif name == "_reduce_scatter_base_":
            self._add("gradients", args[1].nbytes // 2)
        elif name == "_allgather_base_":
            self._add("optimizer" if args[0].nbytes <= self.persistent else "weights", args[0].nbytes // 2)
        else:
            self._add(name, 0)

    def _add(self, kind: str, size: int) -> None:
        count, total = self.of_step.get(kind, [0, 0])
        self.of_step[kind] = [count + 1, total + size]


def work(job: dict[str, Any], rank: int) -> int:
    world = start()
    config = load_config(None, job["settings"])
    section = {"zero_optimization": job["zero"]}
    model = load_model(job["model"], place=placement(complete(section, config.train, world.size), world))
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ready = METHODS[config.method](config).prepare(model, "task", 3)
    size, micro = config.train.global_batch_size, config.train.per_device_train_batch_size
    rows = [Example([1] * 8, [2] * 8)] * (3 * size)
    batches = GlobalBatches(rows, size, micro, 1, 0, "task", world.size)
    received = Received(job["persistent"])

    def on_step(report: StepReport, read: object) -> None:
        if report.step == 2:
            Path(f"{job['output']}.{rank}").write_text(json.dumps(received.of_step))
        received.of_step = {}

    with received:
        train_task(model, ready.optimizer, ready.schedule, batches, config.train, section, world, on_step)
    return 0


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs with keys model, settings, zero (DeepSpeed's section), persistent (bytes), output and log."""
    return [fork_ranks(2, partial(work, job), job["log"]) for job in jobs]
