"""Times a forward and a backward pass of decoder blocks with branches, against frozen blocks and PEFT's.

`bound` is the frozen base in which only activations receive gradients; `reference`, `fused` and `triton` are forms of
this project; `PEFT` is its LoRA with the same rank and targets, if it is installed. Weights are random, and a random
gradient replaces that of a loss.
"""

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Gemma2Config, LlamaConfig

from codyra_llm.adapter import CoDyRAConfig, inject, kernels
from codyra_llm.adapter.config import DEFAULT_TARGETS
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.selfcheck.outcome import Row, Setting, Skipped
from codyra_llm.selfcheck.timing import interleave, ratios, seconds_of

# two blocks of each
SHAPES: dict[str, Callable[[], Any]] = {
    "llama-1b": lambda: LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        num_hidden_layers=2, vocab_size=64,
    ),
    "llama-2-7b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32,
        num_hidden_layers=2, vocab_size=64,
    ),
    "gemma-2b": lambda: Gemma2Config(
        hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        num_hidden_layers=2, vocab_size=64,
    ),
}  # fmt: skip
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 1,
}
CASES = ((16, 2048, False), (8, 2048, False), (64, 2048, False), (16, 8192, True), (16, 16384, True))
SMALL_CASES = ((8, 64, False), (16, 64, True))
ROUNDS, LEAST = 10, 20  # LEAST: seconds that must be left to start a case
Forward = Callable[[nn.Module], torch.Tensor]


def step(setting: Setting, shape: str) -> Iterator[Row]:
    """Yields each contestant's time relative to the bound's and to PEFT's, for each (rank, tokens, recomputation)."""
    cases = SMALL_CASES if setting.small else CASES
    for rank, tokens, recompute in cases:
        if setting.left < LEAST:
            raise Skipped(f"no time was left for rank {rank}, {tokens} tokens and what follows")
        made, forward = blocks(_config(shape, setting.small), rank, tokens, setting.device, _dtype(setting))
        for variant in made.values() if recompute else ():
            variant.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        try:
            yield from _timed(made, forward, setting, {"rank": rank, "tokens": tokens, "recompute": recompute})
        except torch.OutOfMemoryError:
            raise Skipped(f"out of memory at rank {rank}, {tokens} tokens") from None


def compiled(setting: Setting, shape: str) -> Iterator[Row]:
    """Times PEFT's and this project's blocks at rank 16 with torch.compile as well; on a CPU, with tracing only."""
    if not find_spec("peft"):
        raise Skipped("peft is not installed")
    tokens = 64 if setting.small else 2048
    made, forward = blocks(_config(shape, setting.small), 16, tokens, setting.device, _dtype(setting))
    ours = made["triton" if "triton" in made else "fused"]
    backend = "eager" if setting.small else "inductor"
    contestants = {
        "bound": made["bound"],
        "ours": ours,
        "PEFT": made["PEFT"],
        "ours, compiled": torch.compile(ours, backend=backend),
        "PEFT, compiled": torch.compile(made["PEFT"], backend=backend),
    }
    yield from _timed(contestants, forward, setting, {"rank": 16, "tokens": tokens, "recompute": False})  # type: ignore[arg-type]


def variants(model: nn.Module, rank: int, targets: tuple[str, ...] = DEFAULT_TARGETS) -> dict[str, nn.Module]:
    """Returns copies of a model that share its weights: frozen, with this project's non-zero branches, with PEFT's."""
    model.requires_grad_(False)
    weights = {id(p): p for p in model.parameters()}
    weight = next(model.parameters())
    ours = ("reference", "fused") if kernels.missing(weight) else ("reference", "fused", "triton")
    made = {name: copy.deepcopy(model, dict(weights)) for name in ("bound", *ours)}
    for impl in ours:
        inject(made[impl], CoDyRAConfig(rank=rank, target_modules=targets, impl=impl))  # type: ignore[arg-type]
        for _, layer in gated_layers(made[impl]):
            nn.init.normal_(layer.B, std=1e-2)
    if find_spec("peft"):
        made["PEFT"] = _with_peft(copy.deepcopy(model, dict(weights)), rank, targets)
    return made


def blocks(
    config: Any, rank: int, tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, nn.Module], Forward]:
    """Returns the blocks of a configuration in each variant, and a forward function that returns a scalar."""
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=dtype).train()
        width = model.config.hidden_size
        input, upstream = torch.randn(1, tokens, width, dtype=dtype), torch.randn(1, tokens, width, dtype=dtype) / width

    def forward(variant: nn.Module) -> torch.Tensor:
        hidden = variant(inputs_embeds=input.clone().requires_grad_(), use_cache=False).last_hidden_state
        return (hidden * upstream).sum()

    return variants(model, rank), forward


def _timed(made: dict[str, nn.Module], forward: Forward, setting: Setting, case: Row) -> Iterator[Row]:
    def run(variant: nn.Module) -> None:
        forward(variant).backward()
        variant.zero_grad(set_to_none=True)

    contestants = {name: lambda v=variant: run(v) for name, variant in made.items()}
    first = {name: seconds_of(each) for name, each in contestants.items()}
    heights = {name: _height(each) for name, each in contestants.items()}
    seconds = interleave(contestants, 2 if setting.small else ROUNDS)
    over = {of: ratios(seconds, of) for of in ("bound", "PEFT") if of in seconds}
    for name in contestants:
        yield {
            "contestant": name,
            **case,
            **{f"time / {of}": found[name]["median"] for of, found in over.items()},
            "first step, s": first[name],
            **({"extra memory, MB": heights[name] / 1e6} if setting.device == "cuda" else {}),
        }


def _height(run: Callable[[], object]) -> int:
    """Returns the increase of CUDA's allocated memory at its peak while `run` runs; 0 without CUDA."""
    if not torch.cuda.is_initialized():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def _with_peft(model: nn.Module, rank: int, targets: tuple[str, ...]) -> nn.Module:
    import peft

    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=False)
    made: nn.Module = peft.inject_adapter_in_model(lora, model)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return made


def _config(shape: str, small: bool) -> Any:
    config = SHAPES[shape]()
    if small:
        config.update(SMALL)
    return config


def _dtype(setting: Setting) -> torch.dtype:
    return torch.float32 if setting.small else torch.bfloat16
