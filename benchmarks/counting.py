"""Costs of a computation other than time: operations, operator traffic, and bytes kept for the backward pass."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codyra_llm.engine.malloc import return_freed_memory

ATEN = torch.ops.aten
# positions of the (left, right) operands; torch's own FLOP counter ignores the in-place addmm_
PRODUCTS = {ATEN.mm: (0, 1), ATEN.addmm: (1, 2), ATEN.addmm_: (1, 2), ATEN.bmm: (0, 1), ATEN.baddbmm: (1, 2)}


@dataclass
class Cost:
    """Counted costs of a computation.

    Attributes:
        flops: operations of matrix products only, a multiply-add counting as two; fused attention is not counted.
        traffic: bytes read and written by operators that are not views.
    """

    flops: int = 0
    traffic: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # it does not decompose composite operators, as autograd does
            with self:
                output = func.decompose(*args, **(kwargs or {}))
            if output is not NotImplemented:
                return output
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


def costs(run: Callable[[], object], parameters: Iterable[torch.Tensor] | None = None) -> dict[str, object]:
    """Returns columns of a table: operations, operator traffic, extra memory and, with parameters, kept activations.

    Each of `cost`, `extra_bytes` and `saved_bytes` runs the computation once more.

    Args:
        run: the computation.
        parameters: not counted as kept activations; None: there is no backward pass and no column for these.
    """
    counted = cost(run)
    columns: dict[str, object] = {
        "GFLOPs": counted.flops / 1e9,
        "operator traffic, GB": counted.traffic / 1e9,
        "extra memory, MB": round(extra_bytes(run) / 1e6),
    }
    return (
        columns if parameters is None else columns | {"kept activations, MB": round(saved_bytes(run, parameters) / 1e6)}
    )


def cost(run: Callable[[], object]) -> Cost:
    """Returns the cost of all that `run` computes, including backward passes on the CPU."""
    with _Counter() as counter:
        run()
    return counter.cost


def extra_bytes(run: Callable[[], object]) -> int:
    """Returns how far memory grows at its peak during `run`: CUDA memory if available, else resident memory."""
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def saved_bytes(run: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """Returns the peak bytes that autograd keeps for `run`, each storage counted once, without the parameters."""
    left_out = {p.untyped_storage().data_ptr() for p in parameters}
    uses: Counter[int] = Counter()
    now = most = 0

    class Kept:
        """A tensor that autograd keeps; counted until autograd drops this object."""

        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal now, most
            storage = tensor.untyped_storage()
            self.tensor, self.place = tensor, storage.data_ptr()
            self.size = 0 if self.place in left_out else storage.nbytes()
            now += 0 if uses[self.place] else self.size
            uses[self.place] += 1
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            uses[self.place] -= 1
            now -= 0 if uses[self.place] else self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        held = run()  # a forward pass keeps its activations as long as its output is alive
    del held
    return most


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
