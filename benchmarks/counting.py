"""What a computation costs beside time: operations, bytes that operators touch, bytes kept for the backward pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
# operand positions of (left, right) in the products; torch's own counter takes an in-place addmm_ for nothing
PRODUCTS = {ATEN.mm: (0, 1), ATEN.addmm: (1, 2), ATEN.addmm_: (1, 2), ATEN.bmm: (0, 1), ATEN.baddbmm: (1, 2)}


@dataclass
class Cost:
    """Multiply-adds count as two operations; `traffic` is bytes read and written by operators that are not views."""

    flops: int = 0
    traffic: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view and func not in (ATEN.detach.default, ATEN._unsafe_view.default):
            read = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            written = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
            only_made = func._schema.name.split("::")[1].startswith("empty")
            self.cost.traffic += 0 if only_made else sum(t.nbytes for t in [*read.values(), *written])
        if func.overloadpacket in PRODUCTS:
            left, right = (args[position] for position in PRODUCTS[func.overloadpacket])
            self.cost.flops += 2 * left.numel() * right.shape[-1]
        return output


def cost(run: Callable[[], object]) -> Cost:
    """Of all that `run` computes, backward passes on the CPU included."""
    with _Counter() as counter:
        run()
    return counter.cost


def saved_bytes(run: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """Bytes that autograd keeps of what `run` computes, each storage counted once, parameters left out."""
    left_out = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()  # alive while others are packed, so that no address is given out twice
    del held
    return sum(kept.values())
