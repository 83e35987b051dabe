"""The DeepSpeed configuration of a run: the user's JSON for how to hold things, our fields for what is computed."""

import json
from pathlib import Path
from typing import Any

from codyra_llm.config import TrainConfig, resolve_path
from codyra_llm.errors import UserError

# What these say would change the result, or be said twice; the run's configuration says it alone.
OURS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.learning_rate and adapter.*",
    "scheduler": "train.warmup_steps",
    "fp16": "model.dtype (adapters are always fp32)",
    "bf16": "model.dtype (adapters are always fp32)",
}


def read_deepspeed_json(path: str | None) -> dict[str, Any]:
    """The user's part of the configuration; without a path, ZeRO stage 0.

    Raises:
        UserError: no such file, not a JSON object, or a key that the run's configuration decides.
    """
    if path is None:
        return {"zero_optimization": {"stage": 0}}
    try:
        content = json.loads(resolve_path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed: {path}: {error.strerror}; ds_configs/ has some") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{Path(path)} line {error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a DeepSpeed configuration is a JSON object, found {type(content).__name__}")
    for key, owner in OURS.items():
        if key in content:
            raise UserError(f'{path}: "{key}" is decided by {owner} of the run configuration; take it out')
    return content


def complete(user: dict[str, Any], train: TrainConfig, world_size: int) -> dict[str, Any]:
    """The user's part joined with the batch sizes and clipping of the run."""
    micro = train.per_device_train_batch_size
    return {
        **user,
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.global_batch_size // (micro * world_size),
        "gradient_clipping": train.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
