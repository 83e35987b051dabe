"""Short training runs of the nano model with DeepSpeed, compared with the same run in fp32 on the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting, Skipped, bounded

STEPS, ROWS = 6, 8
# largest difference of a step's loss, in nats, and largest relative difference of the norm of the whole update
ALLOWED = {"float32": (1e-3, 1e-2), "bfloat16": (0.05, 0.2)}
BUCKET = 2_000_000


def zero_section(way: str) -> dict[str, Any]:
    """Returns the section "zero_optimization" of a way of running: that of the shipped JSON, with a small bucket."""
    from codyra_llm.files import read_json, shipped

    if way == "zero0":
        return {"stage": 0}
    section: dict[str, Any] = read_json(shipped(f"ds_configs/{way}.json"))["zero_optimization"]
    return {**section, "reduce_bucket_size": BUCKET}


def on_cpu(setting: Setting) -> Iterator[Row]:
    """Runs the reference of the other runs, and checks that its loss decreases."""
    losses, norm = short_run("zero0", "float32")
    _reference(setting).write_text(json.dumps([losses, norm]))
    yield {"what": "loss of the first step, nats", "found": losses[0]}
    yield bounded("loss of the last step, nats", losses[-1], losses[0])


def like_the_cpu(setting: Setting, way: str, dtype: str) -> Iterator[Row]:
    """Compares a run on the device, in one of the ways and dtypes, with the reference."""
    if not _reference(setting).exists():
        raise Skipped("the run on the CPU left nothing to compare with")
    losses, norm = short_run(way, dtype)
    expected, expected_norm = json.loads(_reference(setting).read_text())
    of_loss, of_norm = ALLOWED[dtype]
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    yield bounded("largest difference of a loss, nats", difference, of_loss)
    yield bounded("difference of the update's norm, as a share", abs(norm / expected_norm - 1), of_norm)


def short_run(way: str, dtype: str, on_step: Any = lambda report, read: None) -> tuple[list[float], float]:
    """Returns (loss of each step, norm of the update) of a few steps of the default method on this process's device."""
    import torch

    from codyra_llm.adapter.merging import deltas, norm_of_product
    from codyra_llm.config import load_config
    from codyra_llm.data.batches import GlobalBatches
    from codyra_llm.distributed.ranks import start
    from codyra_llm.engine.train import train_task
    from codyra_llm.engine.zero import load_base
    from codyra_llm.example import Example
    from codyra_llm.methods import METHODS
    from codyra_llm.models.source import open_source

    ranks = start()
    settings = {
        "model.name_or_path": "nano",
        "model.dtype": dtype,
        "adapter.rank": 8,
        "train.global_batch_size": ROWS,
        "train.per_device_train_batch_size": ROWS // 2,
        "train.learning_rate": 3e-3,
    }
    config, zero = load_config(None, settings), {"zero_optimization": zero_section(way)}
    model = load_base(open_source("nano"), config, zero, ranks, print)
    draw = torch.Generator().manual_seed(0)
    # answers repeat the prompt, so that they can be learned
    rows = [torch.randint(5, 1000, (20,), generator=draw).tolist() for _ in range(STEPS * ROWS)]
    batches = GlobalBatches([Example(row, row[:12]) for row in rows], ROWS, ROWS // 2, 1, 0, "check")
    prepared = METHODS[config.method](config).prepare(model, "check", batches.total_steps)
    reports = train_task(model, prepared.optimizer, prepared.schedule, batches, config.train, zero, ranks, on_step)
    norms = [norm_of_product(B, A) for B, A in deltas(model).values()]
    return [report.loss for report in reports], sum(norm**2 for norm in norms) ** 0.5


def _reference(setting: Setting) -> Path:
    return setting.scratch / "reference.json"
