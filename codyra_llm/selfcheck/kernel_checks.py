"""Checks the Triton kernels, and gated layers that use them, against float64.

On a CPU they run in Triton's interpreter. The autotuner is not used: each case specifies its configuration, so that all
configurations are checked.
"""

from collections.abc import Iterator
from itertools import product as combinations

import torch
from torch import nn

from codyra_llm.adapter import CoDyRAConfig, inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.selfcheck.outcome import Row, Setting, bounded

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ODD, EVEN = (33, 65, 39), (64, 128, 96)  # tokens, inputs, outputs
# largest error relative to the largest sum of magnitudes: that of fp32 from three tf32 products
ALLOWED = 2e-6
LAYER_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # relative to the largest value
RANKS = (1, 7, 16, 33, 64)  # for layers, and for products in the interpreter


def products(setting: Setting) -> Iterator[Row]:
    """Yields a row for each product and dtype: the largest error over ranks 1 to 64 (on a CPU `RANKS`) and sizes."""
    from codyra_llm.adapter import triton_product

    worst: dict[tuple[str, torch.dtype], tuple[float, str]] = {}
    for dtype in DTYPES:
        ranks = RANKS if setting.small else range(1, 65)
        cases = [(rank, triton_product.CONFIGS[rank % len(triton_product.CONFIGS)]) for rank in ranks]
        cases += combinations((16, 31), triton_product.CONFIGS)
        for rank, config in cases:
            with triton_product.only(config):
                for name, error in _errors(rank, dtype, setting.device):
                    where = f"rank {rank}, {config.kwargs}"
                    worst[name, dtype] = max(worst.get((name, dtype), (0.0, where)), (error, where))
    for (name, dtype), (error, where) in worst.items():
        # rounding of the result to its dtype: to the nearest value, but the interpreter truncates
        rounding = torch.finfo(dtype).eps / (1 if setting.small else 2) if name == "add_product" else 0.0
        yield bounded(name, error, ALLOWED + rounding, dtype=_name(dtype), ranks=len(ranks), worst=where)


def layers(setting: Setting) -> Iterator[Row]:
    """Checks output and gradients of a q/k/v group whose branches use the kernels against the plain form in float64."""
    from codyra_llm.adapter import kernels, triton_product

    for dtype, rank in combinations(DTYPES, RANKS):
        group = Group(48, dtype).to(setting.device)
        exact = Group(48, torch.float64).to(setting.device)
        exact.load_state_dict(group.state_dict())
        for model, impl in ((group, "fused"), (exact, "reference")):
            inject(model, CoDyRAConfig(rank=rank, target_modules=GROUP, impl=impl))  # type: ignore[arg-type]
            for number, (_, layer) in enumerate(gated_layers(model)):
                torch.manual_seed(number)
                layer.B.data.copy_(torch.randn(layer.B.shape))
                layer.gate.data.copy_(torch.randn(layer.gate.shape))
                layer.products = kernels if impl == "fused" else None
        with torch.no_grad():
            for (_, ours), (_, theirs) in zip(gated_layers(group), gated_layers(exact), strict=True):
                theirs.A.copy_(ours.A)
        config = triton_product.CONFIGS[rank % len(triton_product.CONFIGS)]
        input = torch.randn(2, 17, 48, device=setting.device).to(dtype)
        with triton_product.only(config):
            found = _gradients(group, input)
        expected = _gradients(exact, input.double())
        for name, value in expected.items():
            error = float((found[name].double() - value).abs().max() / value.abs().max())
            if name in ("output", "input") or error > LAYER_ALLOWED[dtype]:
                what = name if name == "output" else f"gradient of {name}"
                yield bounded(what, error, LAYER_ALLOWED[dtype], dtype=_name(dtype), rank=rank)


GROUP = ("q_proj", "k_proj", "v_proj")


class Group(nn.Module):
    """Three projections of the same input."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        for name in GROUP:
            self.add_module(name, nn.Linear(width, width, bias=False, dtype=dtype))

    def forward(self, input: torch.Tensor) -> list[torch.Tensor]:
        """Computes the three outputs: [..., width] -> three times [..., width]."""
        return [self.get_submodule(name)(input) for name in GROUP]


def _gradients(group: Group, input: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the sum of the three outputs, and the gradients of its mean square."""
    input = input.clone().requires_grad_()
    output = sum(each.to(torch.float64) for each in group(input))
    assert isinstance(output, torch.Tensor)
    named = [(name, p) for name, p in group.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(output.square().mean(), [input, *(parameter for _, parameter in named)])
    return dict(zip(["output", "input", *(name for name, _ in named)], [output.detach(), *gradients], strict=True))


def _errors(rank: int, dtype: torch.dtype, device: str) -> Iterator[tuple[str, float]]:
    """Yields (product, its largest error relative to the largest sum of magnitudes)."""
    from codyra_llm.adapter import kernels

    tokens, inputs, outputs = EVEN if rank % 16 == 0 else ODD
    torch.manual_seed(rank)

    def draw(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape).to(device, of)

    x, gradient = draw(tokens, inputs, of=dtype), draw(tokens, outputs, of=dtype)
    A, B, down = draw(rank, inputs), draw(outputs, rank), draw(tokens, rank)
    output = draw(tokens, outputs, of=dtype)
    added = output.clone()
    kernels.add_product(added, down, B.T)
    for name, found, left, right, start in (
        ("down", kernels.down(x, A), x, A.T, None),
        ("project", kernels.project(gradient, B), gradient, B, None),
        ("outer", kernels.outer(down, x), down.T, x, None),
        ("add_product", added, down, B.T, output),
    ):
        left, right = left.double(), right.double()
        exact, size = left @ right, left.abs() @ right.abs()
        if start is not None:
            exact, size = exact + start.double(), size + start.double().abs()
        yield name, float((found.double() - exact).abs().max() / size.max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
