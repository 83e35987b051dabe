"""Finds the places in an optimizer step where the host reads a value and so waits until the device has computed it.

On a GPU, these are the warnings of torch's sync debug mode. On a CPU, these are the operations that would wait on a
GPU: reading a value, and results whose size depends on a mask. On a CPU, values that are on the CPU by design count as
well.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from codyra_llm.selfcheck.outcome import Row, Setting
from codyra_llm.selfcheck.training import STEPS, short_run

if TYPE_CHECKING:
    from codyra_llm.engine.train import StepReport

ATEN = torch.ops.aten
WAITING = (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal)
MASKED = (ATEN.index, ATEN.index_put_, ATEN.index_put)
OWNERS = ("codyra_llm", "deepspeed", "transformers")


def synchronisations(setting: Setting) -> Iterator[Row]:
    """Counts, by place, the synchronizations in the last step (two micro batches) of a short run of the nano model."""
    found = count(lambda on_step: short_run("zero0", "float32", on_step), setting.device)
    yield {"where": "all of a step", "times": found.total()}
    for place, times in found.most_common():
        yield {"where": place, "times": times}


def count(train: Callable[[Callable[["StepReport", object], None]], object], device: str) -> Counter[str]:
    """Counts synchronizations by place in the last step of a training run.

    Args:
        train: runs `STEPS` steps, and calls its argument after each.
        device: cpu or cuda.
    """
    now: Counter[str] = Counter()
    last: Counter[str] = Counter()

    def on_step(report: "StepReport", read: object) -> None:
        if report.step == STEPS - 1:
            last.update(now)
        now.clear()

    with (_watched_gpu if device == "cuda" else _watched_cpu)(now):
        train(on_step)
    return last


class _Watch(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        waits = func.overloadpacket in WAITING
        if func.overloadpacket in MASKED:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if waits:
            self.found[_place()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched_cpu(found: Counter[str]) -> Iterator[None]:
    to_list = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        found[_place()] += 1
        return to_list(tensor)

    with _Watch(found), patch.object(torch.Tensor, "tolist", counted):
        yield


@contextmanager
def _watched_gpu(found: Counter[str]) -> Iterator[None]:
    def note(message: object, category: object, filename: str, line: int, *others: object) -> None:
        if "synchroniz" in str(message):
            found[_place()] += 1

    with warnings.catch_warnings(), patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _place() -> str:
    """Returns the innermost line of the call stack that belongs to one of `OWNERS`."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        owner = next((name for name in OWNERS if name in parts), None)
        if owner and parts[-1] != Path(__file__).name:
            return "/".join(parts[parts.index(owner) :]) + f":{frame.lineno}"
    return "elsewhere"
