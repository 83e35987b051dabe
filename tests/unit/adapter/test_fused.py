"""The fused forward pass equals the reference in every combination, and keeps no tensors that it does not need."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from codyra_llm.adapter import CoDyRAConfig, CoDyRALinear, inject, merge
from codyra_llm.adapter.functional import add_branch, share_input
from codyra_llm.adapter.layer import gated_layers
from tests.models import tiny_model

TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj")
HIDDEN = 64


class Block(nn.Module):
    """Projections as in a decoder layer: q, k and v share an input, o reads their mix, gate and up share an input."""

    def __init__(self, projection: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.q_proj, self.o_proj = projection(HIDDEN, HIDDEN), projection(HIDDEN, HIDDEN)
        self.k_proj, self.v_proj = projection(HIDDEN, 32), projection(HIDDEN, 32)
        self.gate_proj, self.up_proj = projection(HIDDEN, 96), projection(HIDDEN, 96)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mixed = self.q_proj(input) * torch.cat([self.k_proj(input), self.v_proj(input)], dim=-1).tanh()
        hidden = self.o_proj(mixed) + input
        return nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)


def in_8_bits(inputs: int, outputs: int) -> nn.Module:
    return bnb.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)


PROJECTIONS = {
    "fp32": lambda i, o: nn.Linear(i, o, bias=False),
    "fp32 with bias": nn.Linear,
    "fp64": lambda i, o: nn.Linear(i, o, dtype=torch.float64),
    "bf16": lambda i, o: nn.Linear(i, o, bias=False, dtype=torch.bfloat16),
    "bf16 with bias": lambda i, o: nn.Linear(i, o, dtype=torch.bfloat16),
    "nf4": lambda i, o: bnb.nn.Linear4bit(i, o, bias=False, quant_type="nf4", compute_dtype=torch.float32),
    "nf4 in bf16": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="nf4", compute_dtype=torch.bfloat16),
    "int8": in_8_bits,
}
DTYPES = {
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "bf16 with bias": torch.bfloat16,
    "nf4 in bf16": torch.bfloat16,
}


def with_branches(block: nn.Module, impl: str, **settings: object) -> nn.Module:
    """Returns a copy of a block with branches whose B and gate are random."""
    block = copy.deepcopy(block)
    inject(block, CoDyRAConfig(rank=5, target_modules=TARGETS, impl=impl, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, layer in gated_layers(block):
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * 0.1)
        layer.gate.data.copy_(torch.randn(layer.gate.shape, generator=generator))
    return block


def output_and_gradients(block: nn.Module, input: torch.Tensor, run: Callable[..., Any]) -> dict[str, torch.Tensor]:
    input = input.detach().requires_grad_(input.requires_grad)
    output = run(block, input)
    (output.double() * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)).sum().backward()
    found = {"output": output.detach()} | {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return found | ({"input": input.grad} if input.requires_grad else {})


RUNS = {
    "plain": lambda block, x: block(x),
    "checkpointed": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "checkpointed, reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "used twice": lambda block, x: block(x) + 0.5 * block(x),
    "two inputs": lambda block, x: block(x) + block(x * 0.5),
    "autocast": lambda block, x: _autocast(block, x),
}


def _autocast(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return block(x)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) or 1.0
        assert float((found[name].double() - value.double()).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize(("kind", "run", "needs_input"), itertools.product(PROJECTIONS, RUNS, [True, False]))
def test_fused_equals_reference(kind: str, run: str, needs_input: bool) -> None:
    if run == "checkpointed, reentrant" and not needs_input:
        pytest.skip("reentrant checkpointing gives no gradient without one of its inputs")
    torch.manual_seed(0)
    block, dtype = Block(PROJECTIONS[kind]).to("cpu"), DTYPES.get(kind, torch.float32)
    input = torch.randn(2, 7, HIDDEN, dtype=dtype, requires_grad=needs_input)
    expected = output_and_gradients(with_branches(block, "reference"), input, RUNS[run])
    found = output_and_gradients(with_branches(block, "fused"), input, RUNS[run])
    assert len(expected) == 1 + 3 * len(TARGETS) + needs_input
    narrow = dtype == torch.bfloat16 or run == "autocast" or kind == "int8"  # int8 quantizes the rows of its input
    assert_same(found, expected, 5e-2 if narrow else 1e-12 if kind == "fp64" else 1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_equals_reference_in_a_model(architecture: str, recompute: bool) -> None:
    ids = torch.arange(12).view(2, 6)
    results = []
    for impl in ("reference", "fused"):
        model = with_branches(tiny_model(architecture), impl).train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        results.append(output_and_gradients(model, ids, lambda model, ids: model(input_ids=ids).logits))
    assert_same(results[1], results[0], 1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = [(6, 8), (3, 8), (2, 8), (3,), (2,), (5, 3), (4, 2)]
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    W1, W2 = torch.randn(5, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)

    def outputs(
        x: torch.Tensor,
        A1: torch.Tensor,
        A2: torch.Tensor,
        gate1: torch.Tensor,
        gate2: torch.Tensor,
        B1: torch.Tensor,
        B2: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shared, (down1, down2) = share_input(x, [A1, A2])
        return add_branch(shared @ W1.T, down1, gate1, B1), add_branch(shared @ W2.T, down2, gate2, B2)

    assert torch.autograd.gradcheck(outputs, arguments)


def test_an_unused_projection_has_no_gradient() -> None:
    block = with_branches(Block(PROJECTIONS["fp32"]), "fused")
    input = torch.randn(3, HIDDEN, requires_grad=True)
    q, _ = block.q_proj(input), block.k_proj(input)
    q.sum().backward()
    assert block.q_proj.B.grad.abs().sum() > 0
    assert block.k_proj.B.grad is None
    assert input.grad is not None


def test_compiled_model_gives_the_same() -> None:
    block = with_branches(Block(PROJECTIONS["fp32"]), "fused")
    input = torch.randn(2, 7, HIDDEN, requires_grad=True)
    expected = output_and_gradients(block, input, RUNS["plain"])
    block.zero_grad()
    compiled = torch.compile(block, backend="aot_eager")
    assert_same(output_and_gradients(block, input, lambda _, x: compiled(x)), expected, 1e-5)


def saved_bytes(run: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> int:
    """Returns the bytes kept between forward and backward, each storage counted once, without parameters."""
    left_out = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(kept.values())


class Attention(nn.Module):
    """Three bf16 projections q, k and v of one input, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(input), self.k_proj(input), self.v_proj(input)], dim=-1)


def test_three_projections_keep_their_input_once() -> None:
    model = Attention()
    inject(model, CoDyRAConfig(rank=16, target_modules=TARGETS[:3], impl="fused"))
    input = torch.randn(64, 2048, dtype=torch.bfloat16, requires_grad=True)
    kept = saved_bytes(lambda: model(input), list(model.parameters()))
    assert kept <= 1.05 * input.nbytes


def test_nothing_is_held_after_the_forward() -> None:
    block = with_branches(Block(PROJECTIONS["fp32"]), "fused")
    shared = block.q_proj.shared
    block(torch.randn(2, HIDDEN))
    assert shared._held is None and not shared.open
    with pytest.raises(RuntimeError):
        block(torch.randn(2, HIDDEN + 1))
    assert shared._held is None and not shared.open


def test_merged_model_has_no_trace_of_sharing() -> None:
    plain = Block(PROJECTIONS["fp32"])
    block = with_branches(plain, "fused")
    input = torch.randn(2, 3, HIDDEN)
    expected = block(input)
    merge(block)
    torch.testing.assert_close(block(input), expected)
    assert not block._forward_hooks and not block._forward_pre_hooks


def test_compacting_leaves_out_what_is_zero_and_changes_nothing() -> None:
    torch.manual_seed(0)
    plain, input = Block(PROJECTIONS["fp32"]), torch.randn(2, 7, HIDDEN, requires_grad=True)
    results = []
    for compacted in (False, True):
        block = with_branches(plain, "fused", regrow=False)
        for number, (_, layer) in enumerate(gated_layers(block)):
            layer.gate.data[: number % 6] = 0  # up to all gates of a layer
            if compacted:
                layer.compact()
                assert layer.branch()[0].shape[0] == max(0, 5 - number % 6)
        results.append(output_and_gradients(block, input, RUNS["plain"]))
    assert_same(results[1], results[0], 1e-6)
    for name, value in results[0].items():
        if name.endswith("gate"):
            dead = block.get_parameter(name).detach() == 0
            assert not value[dead].any()


def test_components_that_may_grow_again_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="regrow"):
        CoDyRALinear(nn.Linear(4, 4), 2).compact()
    with pytest.raises(ValueError, match="compact_every"):
        CoDyRAConfig(compact_every=10)
