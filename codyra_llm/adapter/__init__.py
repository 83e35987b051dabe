"""The method itself, in pure PyTorch: layer, injection, threshold schedule, proximal optimizer, prune and merge."""

from typing import TYPE_CHECKING

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.lazy import at_first_use

if TYPE_CHECKING:
    from codyra_llm.adapter.injection import inject
    from codyra_llm.adapter.layer import CoDyRALinear
    from codyra_llm.adapter.merging import merge, prune
    from codyra_llm.adapter.optimizer import ProximalAdamW
    from codyra_llm.adapter.schedule import ThresholdSchedule

__all__ = ["CoDyRAConfig", "CoDyRALinear", "ProximalAdamW", "ThresholdSchedule", "inject", "merge", "prune"]
__getattr__ = at_first_use(
    __name__,
    {
        "CoDyRALinear": "codyra_llm.adapter.layer",
        "ProximalAdamW": "codyra_llm.adapter.optimizer",
        "ThresholdSchedule": "codyra_llm.adapter.schedule",
        "inject": "codyra_llm.adapter.injection",
        "merge": "codyra_llm.adapter.merging",
        "prune": "codyra_llm.adapter.merging",
    },
)
