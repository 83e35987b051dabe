"""The DeepSpeed configuration of a run: memory and placement from the user's JSON, the rest from the run's fields."""

from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from codyra_llm.config import TrainConfig, resolve_path
from codyra_llm.data.batches import divide_batch
from codyra_llm.errors import UserError
from codyra_llm.files import read_json

# keys that would change the result or duplicate a setting; the run's configuration alone specifies these
OURS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.learning_rate and adapter.*",
    "scheduler": "train.warmup_steps",
    "fp16": "model.dtype (adapters are always fp32)",
    "bf16": "model.dtype (adapters are always fp32)",
    "amp": "model.dtype (adapters are always fp32)",
    "torch_autocast": "model.dtype (adapters are always fp32)",
}
# these make slices of another size or dtype than the weight's, which loading and merging do not support
ZERO_PLUS_PLUS = {
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
}
NO_CLIPPING = 1e30  # no gradient norm exceeds it, and DeepSpeed still computes the norm
# all gates must be in one sub-group, since the importance threshold compares them with one another
SMALLEST_SUB_GROUP = 1_000_000


def read_deepspeed_json(path: str | None) -> dict[str, Any]:
    """Reads the user's part of the configuration; without a path, ZeRO stage 0.

    Raises:
        UserError: no such file, not a JSON object, a key that the run's configuration specifies, or a
            "zero_optimization" that DeepSpeed or this project does not support.
    """
    if path is None:
        return {"zero_optimization": {"stage": 0}}
    content = read_json(resolve_path(path), "deepspeed takes a JSON file, ds_configs/ has some")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a DeepSpeed configuration is a JSON object, found {type(content).__name__}")
    for key, owner in OURS.items():
        if key in content:
            raise UserError(f'{path}: "{key}" is decided by {owner} of the run configuration; remove it')
    _check_zero(path, content.get("zero_optimization", {}))
    return content


def zero_stage(content: dict[str, Any]) -> int:
    """Returns the ZeRO stage of a DeepSpeed configuration."""
    stage: int = content.get("zero_optimization", {}).get("stage", 0)
    return stage


def complete(user: dict[str, Any], train: TrainConfig, world_size: int) -> dict[str, Any]:
    """Returns the user's part joined with the batch sizes and the gradient clipping of the run."""
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, world_size)
    return {
        **user,
        "train_batch_size": micro * accumulation * world_size,  # some of its places may stay empty
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.max_grad_norm or NO_CLIPPING,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _check_zero(path: str, zero: Any) -> None:
    where = f"{path}: zero_optimization"
    if not isinstance(zero, dict):
        raise UserError(f'{where} is {zero!r}; it must be an object like {{"stage": 2}}')
    try:
        checked = DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f".{part}" for part in first["loc"])
        raise UserError(f"{where}{place}: {first['msg']}, found {first['input']!r}") from None
    except Exception as error:  # DeepSpeed's own checks raise several types
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    if checked.sub_group_size < SMALLEST_SUB_GROUP:
        raise UserError(
            f"{where}.sub_group_size is {checked.sub_group_size}; it must be at least {SMALLEST_SUB_GROUP}, "
            "for all gates to lie in one sub-group"
        )
    for key, default in ZERO_PLUS_PLUS.items():
        if getattr(checked, key) != default:
            raise UserError(f"{where}.{key}: ZeRO++ is not supported; remove it")
    for key in ("offload_param", "offload_optimizer"):
        offload = getattr(checked, key)
        if offload is not None and offload.device == "nvme":
            raise UserError(f'{where}.{key}: offload to "nvme" is not supported; use "cpu"')
