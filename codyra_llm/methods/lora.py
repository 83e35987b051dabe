"""Fixed-rank LoRA: the same layer with its gates frozen at one, merged after each task."""

import dataclasses

from codyra_llm.adapter import CoDyRAConfig
from codyra_llm.methods.codyra import CoDyRA


class FixedRankLoRA(CoDyRA):
    """CoDyRA's run without gates and without a threshold: every component stays."""

    @property
    def adapter(self) -> CoDyRAConfig:
        """The same branches, gates frozen at one."""
        return dataclasses.replace(self.config.adapter, train_gates=False, gate_init="ones")
