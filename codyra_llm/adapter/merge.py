"""The end of a task: drop the components whose gate is zero, add the rest to the weights, restore plain layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from codyra_llm.adapter.injection import replace_module
from codyra_llm.adapter.layer import CoDyRALinear, gated_layers

AddDelta = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class ModuleRank:
    """What pruning left of one branch.

    `bound` is sqrt(rank) * |B diag(gate)|_2 * |A|_2, the quantity that bounds `norm` = |delta W|_F and, through it,
    forgetting (CoDyRA, proposition 1).
    """

    name: str
    rank: int
    initial_rank: int
    norm: float
    bound: float


@torch.no_grad()
def prune(model: nn.Module) -> list[ModuleRank]:
    """Drops every rank component whose gate is exactly zero, in place, and reports what each module kept.

    The model computes the same function before and after. A branch may end with rank 0.
    """
    report = []
    for name, layer in gated_layers(model):
        initial_rank = layer.rank
        alive = layer.gate != 0
        if not alive.all():
            layer.A = nn.Parameter(layer.A[alive].clone(), requires_grad=layer.A.requires_grad)
            layer.B = nn.Parameter(layer.B[:, alive].clone(), requires_grad=layer.B.requires_grad)
            layer.gate = nn.Parameter(layer.gate[alive].clone(), requires_grad=layer.gate.requires_grad)
        report.append(_module_rank(name, layer, initial_rank))
    return report


@torch.no_grad()
def merge(model: nn.Module, scale: float = 1.0, add_delta: AddDelta | None = None) -> int:
    """W <- W + scale * B diag(gate) A for every branch, then puts the plain projection back in its place.

    Args:
        model: a model with gated branches.
        scale: share of the update that is merged; 1 is the method, less is a control.
        add_delta: adds the product of [out_features, rank] and [rank, in_features] to a projection's weight, in
            place; the default does so in fp32 (float64 for float64) with one rounding to the weight's dtype.

    Returns:
        The number of merged branches.

    Raises:
        ValueError: the model has no branch, or a branch holds a value that is not finite (nothing is merged then).
    """
    layers = list(gated_layers(model))
    if not layers:
        raise ValueError("the model has no gated branch to merge")
    for name, layer in layers:
        if not all(torch.isfinite(factor).all() for factor in layer.factors()):
            raise ValueError(f"{name}: the branch holds values that are not finite; nothing was merged")
    for name, layer in layers:
        scaled_B, A = layer.factors()
        if layer.rank:
            (add_delta or add_delta_in_place)(layer.base, scaled_B * scale, A)
        replace_module(model, name, layer.base)
    return len(layers)


def add_delta_in_place(projection: nn.Module, B: torch.Tensor, A: torch.Tensor) -> None:
    """weight += B @ A, computed in the factors' dtype and rounded once to the weight's."""
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]
    weight.copy_(torch.addmm(weight.to(A.dtype), B, A))


class CumulativeUpdate:
    """The sum of all updates of each projection, kept as factors: its norm is the drift from the base model."""

    def __init__(self) -> None:
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, name: str, B: torch.Tensor, A: torch.Tensor, scale: float = 1.0) -> None:
        """Adds scale * B @ A, B [out_features, rank] with the gate folded in, A [rank, in_features]."""
        B, A = (scale * B).cpu(), A.cpu()
        if name in self._factors:
            earlier_B, earlier_A = self._factors[name]
            B, A = torch.cat([earlier_B, B], dim=1), torch.cat([earlier_A, A])
        self._factors[name] = B, A

    def norms(self) -> dict[str, float]:
        """Frobenius norm of each projection's sum of updates."""
        return {name: _product_norm(B.T @ B, A @ A.T) for name, (B, A) in self._factors.items()}


def _product_norm(gram_B: torch.Tensor, gram_A: torch.Tensor) -> float:
    """|B A|_F from B^T B and A A^T, both [rank, rank]: the square is their inner product."""
    return float((gram_B.double() * gram_A.double()).sum().clamp(min=0).sqrt())


def _module_rank(name: str, layer: CoDyRALinear, initial_rank: int) -> ModuleRank:
    if not layer.rank:
        return ModuleRank(name, 0, initial_rank, 0.0, 0.0)
    scaled_B, A = (factor.float() for factor in layer.factors())
    gram_B, gram_A = scaled_B.T @ scaled_B, A @ A.T
    # the 2-norm of a factor is the root of the largest eigenvalue of its rank x rank Gram matrix
    spectral = [torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt() for gram in (gram_B, gram_A)]
    bound = layer.rank**0.5 * spectral[0] * spectral[1]
    return ModuleRank(name, layer.rank, initial_rank, _product_norm(gram_B, gram_A), float(bound))
