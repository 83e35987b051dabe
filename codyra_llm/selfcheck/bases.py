"""Checks bases in 4 and 8 bits: bitsandbytes' products against dequantized weights, and branches on such bases."""

from collections.abc import Iterator
from itertools import product as combinations
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting, bounded

# largest error of a projection's output, relative to the largest value; int8 rounds the inputs to 8 bits as well
ALLOWED = {("nf4", "float32"): 1e-4, ("nf4", "bfloat16"): 2e-2, ("int8", "float32"): 3e-2, ("int8", "bfloat16"): 4e-2}
GRADIENTS_ALLOWED = {"float32": 1e-3, "bfloat16": 5e-2}  # relative to the norm


def bases(setting: Setting) -> Iterator[Row]:
    """Checks the quantized nano model: outputs of projections, and gradients of branches in fused and plain form."""
    import bitsandbytes  # noqa: F401  # the error names it if it is missing
    import torch

    from codyra_llm.models.load import load_model
    from codyra_llm.models.quantize import dequantized, is_quantized

    for quantization, dtype in combinations(("nf4", "int8"), ("float32", "bfloat16")):
        model = load_model("nano", dtype, quantization=quantization, device=setting.device).to(setting.device)  # type: ignore[arg-type]
        how = {"base": quantization, "dtype": dtype}
        worst = 0.0
        for layer in filter(is_quantized, model.modules()):
            input: Any = torch.randn(16, layer.in_features).to(setting.device, getattr(torch, dtype))
            with torch.no_grad():
                expected = input.float() @ dequantized(layer).T
                worst = max(worst, float((layer(input).float() - expected).abs().max() / expected.abs().max()))
        yield bounded("output of a projection", worst, ALLOWED[quantization, dtype], **how)
        ours, plain = (_gradient(model, impl) for impl in ("auto", "reference"))
        error = float((ours - plain).norm() / plain.norm())
        yield bounded("gradients of branches", error, GRADIENTS_ALLOWED[dtype], **how)


def _gradient(model: Any, impl: str) -> Any:
    """Returns the gradients of all branches, flattened; the branches are removed from the model afterwards."""
    import torch

    from codyra_llm.adapter import CoDyRAConfig, inject
    from codyra_llm.adapter.layer import gated_layers
    from codyra_llm.adapter.merging import unwrap
    from codyra_llm.engine.loss import AnswerLoss

    inject(model, CoDyRAConfig(rank=8, impl=impl))  # type: ignore[arg-type]
    torch.manual_seed(0)
    for _, layer in gated_layers(model):
        layer.B.data.copy_(torch.randn(layer.B.shape) * 1e-2)
    ids = torch.randint(5, 1000, (2, 32)).to(model.device)
    AnswerLoss(model.train())(ids, ids).backward()
    found = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
    unwrap(model.eval())
    return found
