"""codyra_llm: trains a language model on task after task, with updates as small as each task allows.

    CoDyRAConfig        settings of the adapter
    inject              wraps a model's projections in importance-gated low-rank branches
    ProximalAdamW       AdamW followed by the soft threshold that zeroes gates
    ThresholdSchedule   the threshold of each step of a task
    prune, merge        end a task: remove zero components, add the rest to the weights
    TaskStream          tasks and their rows, from files or from memory
    run                 the whole continual run, under DeepSpeed

The adapter (all but TaskStream and run) is pure PyTorch and works in any training loop.
"""

from typing import TYPE_CHECKING

from codyra_llm.lazy import at_first_use
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
# the adapter alone requires neither transformers nor DeepSpeed
ELSEWHERE = {"TaskStream": "codyra_llm.data.stream", "run": "codyra_llm.workflows.train"}
__getattr__ = at_first_use(__name__, {**dict.fromkeys(__all__, "codyra_llm.adapter"), **ELSEWHERE})
