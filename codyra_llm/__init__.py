"""codyra_llm: teach a language model task after task, with updates as small as each task allows.

    CoDyRAConfig        settings of the adapter
    inject              wraps a model's projections in importance-gated low-rank branches
    ProximalAdamW       AdamW followed by the soft threshold that zeroes gates
    ThresholdSchedule   how the threshold grows over a task
    prune, merge        end a task: drop zero components, add the rest to the weights
    TaskStream          tasks and their rows, from files or from memory
    run                 the whole continual run, under DeepSpeed

The adapter (all but TaskStream and run) is pure PyTorch and works in any training loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codyra_llm.version import __version__

if TYPE_CHECKING:
    from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, merge, prune
    from codyra_llm.data.stream import TaskStream
    from codyra_llm.workflows.train import run

__all__ = [
    "CoDyRAConfig",
    "ProximalAdamW",
    "TaskStream",
    "ThresholdSchedule",
    "__version__",
    "inject",
    "merge",
    "prune",
    "run",
]
ELSEWHERE = {"TaskStream": "codyra_llm.data.stream", "run": "codyra_llm.workflows.train"}


def __getattr__(name: str) -> Any:
    # Imported at first use: the adapter alone needs neither transformers nor DeepSpeed, and --help not even torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ELSEWHERE.get(name, "codyra_llm.adapter")), name)
