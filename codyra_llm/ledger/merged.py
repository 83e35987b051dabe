"""The weights that a ledger leaves, one after another, from the original files: none is there but the one at hand."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from codyra_llm.adapter.merge import Factors, Fill, sum_in_tiles


@torch.no_grad()
def merged_weights(
    layout: Mapping[str, torch.Tensor], original: Callable[[str], Fill], updates: Iterable[tuple[str, Factors]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, original + sum of its updates, rounded once) of each weight, on the CPU.

    Args:
        layout: name, shape and dtype of each weight, on any device.
        original: gives the values of the model that the updates began with.
        updates: (projection, factors of the sum of its updates), as `summed` gives them.
    """
    left = dict(layout)
    for module, factors in updates:
        weight = torch.empty_like(left.pop(f"{module}.weight"), device="cpu")
        flat = weight.view(-1)
        for begin, tile in sum_in_tiles(original(f"{module}.weight"), *factors, 0, len(flat)):
            flat[begin : begin + len(tile)] = tile
        yield f"{module}.weight", weight
    for name, like in left.items():
        weight = torch.empty_like(like, device="cpu")
        original(name)(weight.view(-1), 0)
        yield name, weight
