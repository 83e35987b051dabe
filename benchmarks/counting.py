"""What a computation costs beside time: operations, bytes that operators touch, bytes kept for the backward pass."""

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
# operand positions of (left, right) in the products; torch's own counter takes an in-place addmm_ for nothing
PRODUCTS = {ATEN.mm: (0, 1), ATEN.addmm: (1, 2), ATEN.addmm_: (1, 2), ATEN.bmm: (0, 1), ATEN.baddbmm: (1, 2)}


@dataclass
class Cost:
    """Multiply-adds count as two operations, of matrix products alone (what a fused attention computes is left out);
    `traffic` is bytes read and written by operators that are not views.
    """

    flops: int = 0
    traffic: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # which hands over operators whole that autograd would take apart
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
    """Columns of a table, of three more runs: a counted one, one whose memory is watched, one for what autograd keeps.

    Args:
        parameters: left out of what is kept; None: there is no backward pass.
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
    """Of all that `run` computes, backward passes on the CPU included."""
    with _Counter() as counter:
        run()
    return counter.cost


def extra_bytes(run: Callable[[], object]) -> int:
    """How far memory rises above where it stands while `run` runs: CUDA's where there is one, else resident memory."""
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
    """Most bytes that autograd keeps at one time of what `run` computes, each storage once, parameters left out."""
    left_out = {p.untyped_storage().data_ptr() for p in parameters}
    uses: Counter[int] = Counter()
    now = most = 0

    class Kept:
        """A tensor that autograd keeps, until it lets go of this."""

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
        held = run()  # a forward pass keeps what it does as long as its output is alive
    del held
    return most


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
