"""Measures the ceilings of one device, for `codyra plan --ceilings selfcheck.json`."""

import hashlib
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting

ROUNDS = 5
LAYERS = 8


def ceilings(setting: Setting) -> Iterator[Row]:
    """Measures operations and bytes per second, and the seconds that the host takes to launch one decoder layer."""
    import torch

    from codyra_llm.selfcheck.timing import interleave

    def seconds(run: Callable[[], object]) -> float:
        return statistics.median(interleave({"it": run}, ROUNDS)["it"])

    size, dtype = (512, torch.float32) if setting.small else (8192, torch.bfloat16)
    left, right = (torch.ones(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    yield _row("flops", 2 * size**3 / seconds(lambda: torch.mm(left, right, out=product)))
    source = torch.ones(2**24 if setting.small else 2**29, device=setting.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    yield _row("memory", 2 * source.nbytes / seconds(lambda: target.copy_(source)))
    model, ids = narrow_model(setting.device), torch.ones(1, 1, dtype=torch.long, device=setting.device)
    yield _row("layer", seconds(torch.inference_mode()(lambda: model(ids, use_cache=False))) / LAYERS)
    content = os.urandom(2**24 if setting.small else 2**28)

    def write() -> None:
        with (setting.scratch / "written").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    yield _row("disk", len(content) / seconds(write))
    yield _row("hashing", len(content) / seconds(lambda: hashlib.sha256(content).digest()))


def _row(what: str, found: float) -> Row:
    return {"what": what, "found": found, "unit": "s" if what == "layer" else "a second"}


def narrow_model(device: str) -> Any:
    """Returns a decoder so small that its layers take only the time of launching their operations."""
    import torch
    from transformers import AutoModel, LlamaConfig

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    with torch.device(device):
        return AutoModel.from_config(LlamaConfig(**sizes, num_hidden_layers=LAYERS, num_attention_heads=1)).eval()
