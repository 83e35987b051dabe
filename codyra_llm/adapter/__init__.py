"""The method itself, in pure PyTorch: layer, injection, threshold schedule, proximal optimizer, prune and merge."""

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.adapter.injection import inject
from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merge import merge, prune
from codyra_llm.adapter.optimizer import ProximalAdamW
from codyra_llm.adapter.schedule import ThresholdSchedule

__all__ = ["CoDyRAConfig", "CoDyRALinear", "ProximalAdamW", "ThresholdSchedule", "inject", "merge", "prune"]
