"""The merged weights of a ledger, streamed one tensor at a time from the original files."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from codyra_llm.adapter.merging import Factors, Fill, largest_magnitude, sum_in_tiles
from codyra_llm.errors import UserError


@torch.no_grad()
def merged_weights(
    layout: Mapping[str, torch.Tensor], original: Callable[[str], Fill], updates: Iterable[tuple[str, Factors]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, original + sum of its updates, rounded once) of each weight, on the CPU.

    Args:
        layout: name, shape and dtype of each weight, on any device.
        original: returns the base model's values of a weight, by name.
        updates: (projection, factors of the sum of its updates), as yielded by `summed`.

    Raises:
        UserError: a weight is not finite, in the files or after rounding.
    """
    left = dict(layout)
    for module, factors in updates:
        name = f"{module}.weight"
        yield name, _finite(name, _filled(left.pop(name), original(name), factors), "with its updates")
    for name, like in left.items():
        yield name, _finite(name, _filled(like, original(name)), "as the base model's files have it")


def _finite(name: str, weight: torch.Tensor, made: str) -> torch.Tensor:
    if weight.is_floating_point() and not math.isfinite(largest_magnitude(weight)):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise UserError(f"{name} {made} holds values that are not finite in {dtype}; use a dtype of wider range")
    return weight


def _filled(like: torch.Tensor, original: Fill, factors: Factors | None = None) -> torch.Tensor:
    weight = torch.empty_like(like, device="cpu")
    if factors is None:
        original(weight.view(-1), 0)
        return weight
    for begin, tile in sum_in_tiles(original, *factors, 0, weight.numel()):
        weight.view(-1)[begin : begin + len(tile)] = tile
    return weight
