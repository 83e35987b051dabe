"""CoDyRALinear: a frozen projection plus an importance-gated low-rank branch, y = W x + b + B (gate * (A x))."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from codyra_llm.adapter import products as torch_products
from codyra_llm.adapter.functional import Mix, add_branch, add_gated_branch, share_input


class CoDyRALinear(nn.Module):
    """y = W x + b + B diag(gate) A x, with W and b frozen.

    A [rank, in_features] starts Kaiming-uniform, B [out_features, rank] at zero, so the branch initially changes
    nothing. gate [rank] is one importance weight for each rank component. All three are fp32 (float64 over a float64
    base), whatever the base is: a bf16 gate is too coarse for a threshold to change it. The base stays a module and is
    called as one, so quantized and partitioned projections work.

    Args:
        base: the projection, any module with `weight`, `in_features` and `out_features`.
        rank: number of rank components.
        gates_start_at_one: True: gates start at one; False: they are drawn from N(0, 1).
        train_gates: False freezes the gates, which makes the branch a plain LoRA.
        generator: a CPU generator for the initial values, so that every rank of a job draws the same.
        products: the products that the fused forward uses; None: the plain reference.
        regrow: whether a gate that has become zero continues to learn.
    """

    shared: "SharedInput | None" = None  # the branches that read the same input, if there are others
    enabled = True  # False: the layer computes its projection alone, and `stored`
    alive: torch.Tensor | None = None  # the components that take part in the products; None: all
    # directions that the branch neither reads nor writes: orthonormal columns, or shorter ones, which it reads and
    # writes in part (1 - their squared length)
    blocked_inputs: torch.Tensor | None = None  # [in_features, directions]
    blocked_outputs: torch.Tensor | None = None  # [out_features, directions]
    # (B [out_features, stored], A [stored, in_features]): frozen components that take part, before the branch's own
    stored: tuple[torch.Tensor, torch.Tensor] | None = None
    # transforms the products of all components with the input, [tokens, components]; None leaves them unchanged
    mix: Mix | None = None

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        gates_start_at_one: bool = True,
        train_gates: bool = True,
        generator: torch.Generator | None = None,
        products: Any = torch_products,
        regrow: bool = True,
    ) -> None:
        super().__init__()
        self.products, self.regrow = products, regrow
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        weight: torch.Tensor = base.weight  # type: ignore[assignment]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        bound = 1 / math.sqrt(self.in_features)  # Kaiming-uniform with a = sqrt(5)
        A = (torch.rand(rank, self.in_features, generator=generator, dtype=dtype) * 2 - 1) * bound
        gate = torch.randn(rank, generator=generator, dtype=dtype)
        if gates_start_at_one:
            gate = torch.ones_like(gate)
        B = torch.zeros(self.out_features, rank, dtype=dtype)
        self.A = nn.Parameter(A.to(weight.device))
        self.B = nn.Parameter(B.to(weight.device))
        self.gate = nn.Parameter(gate.to(weight.device), requires_grad=train_gates)

    @property
    def rank(self) -> int:
        """Number of rank components of the branch, without pruned ones."""
        return self.gate.shape[0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        if not self.enabled and self.stored is None:
            return self.base(input)
        A, B, gate = self.branch()
        if self.products is None or torch.compiler.is_compiling():  # a compiler fuses the plain form on its own
            return add_gated_branch(self.base(input), input, A, B, gate, self.mix)
        if self.shared is not None and self.shared.open:
            flat, down = self.shared.down(self, input)
        else:
            flat, (down,) = share_input(input.flatten(0, -2), [A], self.products)
        if self.mix is not None:
            down = self.mix(down)
        # two dimensions: for three, a projection with a bias returns a view, which cannot be added to in place
        output = add_branch(self.base(flat), down, gate, B, self.products)
        return output.view(*input.shape[:-1], self.out_features)

    def branch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (A, B, gate) of the components that take part in the products."""
        # a gate that may not grow again must have no gradient, as it would count in the gradient norm
        gate = self.gate if self.regrow else torch.where(self.gate != 0, self.gate, torch.zeros_like(self.gate))
        A, B = self._projected()
        if self.alive is not None:
            A, B, gate = A[self.alive], B[:, self.alive], gate[self.alive]
        if self.stored is None:
            return A, B, gate
        old_B, old_A = self.stored
        ones = torch.ones_like(old_A[:, 0])
        if not self.enabled:
            return old_A, old_B, ones
        return torch.cat([old_A, A]), torch.cat([old_B, B], dim=1), torch.cat([ones, gate])

    def _projected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (A, B) without their parts in blocked directions, so that no optimizer step can leave the others."""
        A: torch.Tensor = self.A
        B: torch.Tensor = self.B
        if self.blocked_inputs is not None:
            A = A - (A @ self.blocked_inputs) @ self.blocked_inputs.T
        if self.blocked_outputs is not None:
            B = B - self.blocked_outputs @ (self.blocked_outputs.T @ B)
        return A, B

    def compact(self) -> None:
        """Removes components at zero from the products from here on; raises ValueError if they may grow again."""
        if self.regrow:
            raise ValueError("a component at zero may grow again (regrow), so it cannot be left out")
        alive = self.gate.detach().nonzero().flatten()
        self.alive = alive if len(alive) < self.rank else None

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (B * gate [out_features, rank], A [rank, in_features]), whose product is the update."""
        A, B = self._projected()
        return B.detach() * self.gate.detach(), A.detach()

    def extra_repr(self) -> str:
        """Returns what printing the model shows of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class SharedInput:
    """Branches of one parent module that read the same input and share one stacked down-projection.

    While the parent runs, the first branch to be called computes the products of all; each other branch uses its part
    if it is called with the same tensor object. Nothing is stored after the parent has returned.

    Args:
        parent: the module whose forward calls the layers.
        layers: at least two of its gated layers.
    """

    def __init__(self, parent: nn.Module, layers: list[CoDyRALinear]) -> None:
        self.layers, self.open = layers, False
        self._held: tuple[torch.Tensor, torch.Tensor, dict[CoDyRALinear, torch.Tensor]] | None = None
        self._hooks = [
            parent.register_forward_pre_hook(lambda *_: self._begin()),
            parent.register_forward_hook(lambda *_: self._end(), always_call=True),
        ]
        for layer in layers:
            layer.shared = self

    def dissolve(self) -> None:
        """Makes each layer compute its own product from here on."""
        for hook in self._hooks:
            hook.remove()
        for layer in self.layers:
            layer.shared = None

    def down(self, layer: CoDyRALinear, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (`input` as [tokens, in_features] for the base, its product with a layer's A [tokens, rank])."""
        if self._held is None or self._held[0] is not input or layer not in self._held[2]:
            flat, downs = share_input(input.flatten(0, -2), [each.branch()[0] for each in self.layers], layer.products)
            self._held = input, flat, dict(zip(self.layers, downs, strict=True))
        return self._held[1], self._held[2].pop(layer)

    def _begin(self) -> None:
        self.open, self._held = True, None

    def _end(self) -> None:
        self.open, self._held = False, None


@contextmanager
def without_branches(model: nn.Module) -> Iterator[None]:
    """A context in which the model runs without its branches."""
    layers = [layer for _, layer in gated_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def gated_layers(model: nn.Module) -> Iterator[tuple[str, CoDyRALinear]]:
    """Yields (name, layer) of every CoDyRALinear in the model, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, CoDyRALinear):
            yield name, module
