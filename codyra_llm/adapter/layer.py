"""CoDyRALinear: a frozen projection plus an importance-gated low-rank branch, y = W x + b + B (gate * (A x))."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from codyra_llm.adapter.functional import add_gated_branch


class CoDyRALinear(nn.Module):
    """y = W x + b + B diag(gate) A x, with W and b frozen.

    A [rank, in_features] starts Kaiming-uniform, B [out_features, rank] at zero, so the branch starts as no
    change at all. gate [rank] is one importance weight for each rank component. All three are fp32 (float64
    over a float64 base) whatever the base is: a bf16 gate is too coarse for a threshold to move it. The base
    stays a module and is called as one, so quantised and partitioned projections work.

    Args:
        base: the projection, anything with `weight`, `in_features` and `out_features`.
        rank: number of rank components.
        gates_start_at_one: else they are drawn from N(0, 1).
        train_gates: false freezes the gates, which makes the branch a plain LoRA.
        generator: a CPU generator for the draws, so that every rank of a job draws the same.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        gates_start_at_one: bool = True,
        train_gates: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
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
        """Number of rank components that the branch holds, pruned ones left out."""
        return self.gate.shape[0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        return add_gated_branch(self.base(input), input, self.A, self.B, self.gate)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * gate [out_features, rank], A [rank, in_features]): the update is their product."""
        return self.B.detach() * self.gate.detach(), self.A.detach()

    def extra_repr(self) -> str:
        """What printing the model shows of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def gated_layers(model: nn.Module) -> Iterator[tuple[str, CoDyRALinear]]:
    """(name, layer) of every CoDyRALinear in the model, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, CoDyRALinear):
            yield name, module
