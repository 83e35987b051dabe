"""The end of a task: prunes components whose gate is zero, merges the rest into the weights, restores plain layers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from codyra_llm.adapter.injection import replace_module
from codyra_llm.adapter.layer import gated_layers

AddDelta = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]
# memory that a merge needs beside the weight; small enough that allocators reuse the same pages for each tile
TILE_BYTES = 16 * 2**20
Factors = tuple[torch.Tensor, torch.Tensor]  # (B [out_features, rank], A [rank, in_features]); B @ A is an update
Deltas = dict[str, Factors]
# fill(part, start) copies a weight's flattened values from `start` on into `part`
Fill = Callable[[torch.Tensor, int], None]


@dataclass(frozen=True)
class ModuleRank:
    """The result of pruning one branch.

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
    """Removes every rank component whose gate is exactly zero, in place, and returns a report for each module.

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
        layer.alive = None
        report.append(module_rank(name, *layer.factors(), initial_rank))
    return report


def merge(model: nn.Module, scale: float = 1.0, add_delta: AddDelta | None = None) -> int:
    """Sets W <- W + scale * B diag(gate) A for every branch, and restores the plain projections.

    Args:
        model: a model with gated branches.
        scale: share of the update that is merged; 1 is the method, less is a control.
        add_delta: see `apply_deltas`.

    Returns:
        The number of merged branches.

    Raises:
        ValueError: see `deltas` and `check_reach`; nothing is merged then.
    """
    updates = deltas(model, scale)
    for name, layer in gated_layers(model):
        weight: torch.Tensor = layer.base.weight  # type: ignore[assignment]
        if weight.is_floating_point():  # others are not merged into
            check_reach(name, weight.dtype, largest_magnitude(weight), *updates[name])
    unwrap(model)
    apply_deltas(model, updates, add_delta)
    return len(updates)


@torch.no_grad()
def deltas(model: nn.Module, scale: float = 1.0) -> Deltas:
    """Returns the update of each projection: (scale * B diag(gate) [out_features, rank], A [rank, in_features]).

    Raises:
        ValueError: the model has no branch, or a branch contains a value that is not finite.
    """
    updates = {}
    for name, layer in gated_layers(model):
        B, A = layer.factors()
        # contiguous, as after writing and reading: the last bit of a product may depend on the layout
        updates[name] = (B * scale).contiguous(), A.contiguous()
        if not all(torch.isfinite(factor).all() for factor in updates[name]):
            raise ValueError(f"{name}: the branch holds values that are not finite; nothing was merged")
    if not updates:
        raise ValueError("the model has no gated branch to merge")
    return updates


def check_reach(name: str, dtype: torch.dtype, largest: float, B: torch.Tensor, A: torch.Tensor) -> None:
    """Raises ValueError if a weight with its update may not be finite in the weight's dtype.

    Args:
        name: name of the projection.
        dtype: dtype of its weight.
        largest: the largest magnitude among the weight's values.
        B: [out_features, rank].
        A: [rank, in_features].
    """
    info, reach = torch.finfo(dtype), largest + largest_change(B, A)
    if not reach <= info.max * (1 - info.eps):  # the margin is for the weight, which is rounded
        raise ValueError(
            f"{name}: a weight may reach {reach:.3g} with its update, {str(dtype).removeprefix('torch.')} ends at "
            f"{info.max:.3g}; nothing was merged"
        )


def stacked(updates: Iterable[Factors | None]) -> Factors:
    """Concatenates factors so that their product is the sum of the updates' products; None adds nothing.

    At least one must not be None, and all must belong to one projection.
    """
    Bs, As = zip(*filter(None, updates), strict=True)
    return torch.cat(Bs, dim=1), torch.cat(As)


def largest_change(B: torch.Tensor, A: torch.Tensor) -> float:
    """Returns a bound on all |(B A)_ij|: largest row norm of B times largest column norm of A (Cauchy-Schwarz)."""
    return float(B.double().norm(dim=1).max() * A.double().norm(dim=0).max())


def largest_magnitude(values: torch.Tensor) -> float:
    """Returns the largest |value|, 0.0 for none; inf or nan if a value is not finite. Needs no further memory."""
    return max(abs(float(end)) for end in torch.aminmax(values.detach())) if values.numel() else 0.0


def unwrap(model: nn.Module) -> None:
    """Restores the plain projection of every gated layer; the branches are dropped without a merge."""
    for name, layer in list(gated_layers(model)):
        if layer.shared is not None:
            layer.shared.dissolve()
        replace_module(model, name, layer.base)


@torch.no_grad()
def apply_deltas(model: nn.Module, updates: Deltas, add_delta: AddDelta | None = None) -> None:
    """Adds updates to the weights of a model without branches.

    Args:
        model: the model.
        updates: the result of `deltas`.
        add_delta: adds the product of [out_features, rank] and [rank, in_features] to a projection's weight, in
            place; the default does so in fp32 (float64 for float64) with one rounding to the weight's dtype.
    """
    for name, (B, A) in updates.items():
        if len(A):
            (add_delta or add_delta_in_place)(model.get_submodule(name), B, A)


def add_delta_in_place(projection: nn.Module, B: torch.Tensor, A: torch.Tensor) -> None:
    """Sets weight += B @ A, computed in the factors' dtype and rounded once to the weight's, a tile of rows at a time.

    Raises:
        ValueError: the weight is quantized.
    """
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]
    if not weight.is_floating_point():
        raise ValueError(f"a {weight.dtype} weight would lose most of an update; quantize the merged original again")
    rows = tile_rows(A)
    for tile, B_rows in zip(weight.split(rows), B.split(rows), strict=True):
        if tile.dtype == A.dtype:
            tile.addmm_(B_rows, A)
        else:
            tile.copy_(tile.to(A.dtype).addmm_(B_rows, A))


def sum_in_tiles(
    weight: Fill, B: torch.Tensor, A: torch.Tensor, start: int, stop: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields the flattened weight + B @ A from `start` to `stop`, tile by tile: (where the tile begins, its values).

    Computed in the factors' dtype. The rows of a product are grouped the same way in every call, so a value has the
    same bits whatever part of the weight is requested.

    Args:
        weight: fills in the weight's values of a tile, just before the tile is yielded.
        B: [out_features, rank].
        A: [rank, in_features].
        start: first index of the flattened weight.
        stop: end of the range.
    """
    columns, rows = A.shape[1], tile_rows(A)
    for row in range(start // columns // rows * rows, -(-stop // columns), rows) if start < stop else ():
        product = (B[row : row + rows] @ A).flatten()
        first, last = max(start, row * columns), min(stop, row * columns + len(product))
        tile = torch.empty(last - first, dtype=A.dtype, device=A.device)
        weight(tile, first)
        yield first, tile.add_(product[first - row * columns : last - row * columns])


def tile_rows(A: torch.Tensor) -> int:
    """Returns the number of rows of a product with A in a tile."""
    return max(1, TILE_BYTES // (A.shape[1] * A.element_size()))


def norm_of_product(B: torch.Tensor, A: torch.Tensor) -> float:
    """Returns |B A|_F without computing the product. Stacked factors of several updates give the norm of their sum."""
    return _product_norm(B.T @ B, A @ A.T)


def _product_norm(gram_B: torch.Tensor, gram_A: torch.Tensor) -> float:
    """Returns |B A|_F from B^T B and A A^T, both [rank, rank]: its square is their inner product."""
    return float((gram_B.double() * gram_A.double()).sum().clamp(min=0).sqrt())


def difference(new: Factors, old: Factors) -> Factors:
    """Returns factors whose product is that of `new` minus that of `old`."""
    return stacked([new, (-old[0], old[1])])


def module_rank(name: str, B: torch.Tensor, A: torch.Tensor, initial_rank: int) -> ModuleRank:
    """Returns rank, norm and bound of a projection's update B A: B [out_features, rank], A [rank, in_features]."""
    if not len(A):
        return ModuleRank(name, 0, initial_rank, 0.0, 0.0)
    B, A = B.float(), A.float()
    gram_B, gram_A = B.T @ B, A @ A.T
    bound = len(A) ** 0.5 * _spectral_norm(gram_B) * _spectral_norm(gram_A)
    return ModuleRank(name, len(A), initial_rank, _product_norm(gram_B, gram_A), float(bound))


def of_change(kept: ModuleRank, B: torch.Tensor, A: torch.Tensor) -> ModuleRank:
    """Returns the report of a projection whose update is a change B A: norm and bound are those of the change."""
    change = module_rank(kept.name, B, A, kept.initial_rank)
    return replace(kept, norm=change.norm, bound=change.bound)


def _spectral_norm(gram: torch.Tensor) -> torch.Tensor:
    """Returns a factor's 2-norm, the root of the largest eigenvalue of its [rank, rank] Gram matrix."""
    if not torch.isfinite(gram).all():  # linalg would raise; `deltas` reports the problem
        return gram.new_tensor(torch.inf)
    return torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()
