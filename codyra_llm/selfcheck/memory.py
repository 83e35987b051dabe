"""Compares the peak memory of a short training run with the planned one.

On a GPU it is the memory allocated by torch; on a CPU, the growth of resident memory, as reported by the kernel.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codyra_llm.selfcheck.outcome import Row, Setting, bounded
from codyra_llm.selfcheck.training import zero_section

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from codyra_llm.config import RunConfig
    from codyra_llm.distributed.ranks import Ranks
    from codyra_llm.engine.train import OnStep

ANSWER = 32
ALLOWED = 0.1  # largest relative error of the plan


def memory(setting: Setting) -> Iterator[Row]:
    """Checks layers of Llama-3.2-1B's shape at ZeRO stage 0, with and without recomputation; on a CPU, smaller ones."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from codyra_llm.config import load_config
    from codyra_llm.distributed.ranks import start

    ranks = start()
    sizes: dict[str, Any] = (
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 32000}
        if setting.small
        else {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "vocab_size": 128256}
    )
    heads = sizes["hidden_size"] // 64
    shape = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads // 4, tie_word_embeddings=True)
    rows, length, dtype = (1, 128, "float32") if setting.small else (2, 1024, "bfloat16")
    tiny = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    for recompute in (False, True):
        settings = {
            "model.dtype": dtype,
            "model.gradient_checkpointing": recompute,
            "train.per_device_train_batch_size": rows,
            "train.global_batch_size": 2 * rows,
        }
        config = load_config(None, settings)
        # allocations of libraries at their first use are not part of a plan
        train(AutoModelForCausalLM.from_config(tiny).to(ranks.device), config, "zero0", length, ranks)
        watch = Watch(setting.device)
        with torch.device(ranks.device):
            model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype))
        train(model, config, "zero0", length, ranks, lambda report, read, watch=watch: watch.step(report.step))  # type: ignore[misc]
        planned = _planned(shape, config, length, setting.device)
        del model
        how = {"planned, MB": planned / 1e6, "measured, MB": watch.peak / 1e6, "recompute": recompute}
        yield bounded("planned over measured, less one", abs(planned / watch.peak - 1), ALLOWED, **how)


def train(
    model: "PreTrainedModel",
    config: "RunConfig",
    way: str,
    length: int,
    ranks: "Ranks",
    on_step: "OnStep" = lambda report, read: None,
) -> None:
    """Runs three optimizer steps on rows of `length` tokens, as a run does."""
    from codyra_llm.data.batches import GlobalBatches
    from codyra_llm.engine.train import train_task
    from codyra_llm.example import Example
    from codyra_llm.methods import METHODS

    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared = METHODS[config.method](config).prepare(model, "measured", 3)
    example = Example(list(range(100, 100 + length - ANSWER)), list(range(100, 100 + ANSWER)))
    size, micro = config.train.global_batch_size, config.train.per_device_train_batch_size
    batches = GlobalBatches([example] * (3 * size), size, micro, 1, 0, "measured", ranks.size)
    zero = {"zero_optimization": zero_section(way)}
    train_task(model, prepared.optimizer, prepared.schedule, batches, config.train, zero, ranks, on_step)


class Watch:
    """Measures the peak memory of the third optimizer step, relative to the memory when this object was created.

    Attributes:
        peak: peak bytes of the third step.
        between: bytes in use after the second step.
    """

    def __init__(self, device: str) -> None:
        self.device, self.between, self.peak = device, 0, 0
        gc.collect()
        self.before = self._now()

    def step(self, number: int) -> None:
        """Measures memory after optimizer step `number`, counted from 0."""
        if number == 1:
            self.between = self._now() - self.before
            self._begin_anew()
        elif number == 2:
            self.peak = self._most() - self.before

    def _now(self) -> int:
        import torch

        return torch.cuda.memory_allocated() if self.device == "cuda" else resident("VmRSS")

    def _begin_anew(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def _most(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """Returns the bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _planned(shape: Any, config: "RunConfig", length: int, device: str) -> int:
    import torch
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from codyra_llm.methods import METHODS
    from codyra_llm.models.load import meta_model
    from codyra_llm.planning.activations import activation_bytes
    from codyra_llm.planning.memory import ModelSizes, rank_memory

    model = meta_model(shape, dtype=getattr(torch, config.model.dtype))
    METHODS[config.method](config).wrap(model)
    rows = config.train.per_device_train_batch_size
    activations = activation_bytes(model, rows, length, rows * ANSWER, config.model.gradient_checkpointing)
    memory = rank_memory(ModelSizes.of(model), DeepSpeedZeroConfig(stage=0), 1, 2, activations)
    return memory.peak if device == "cuda" else memory.shared_peak
