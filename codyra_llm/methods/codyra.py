"""CoDyRA: gated branches, thresholded while they train, pruned and merged after each task (arXiv 2412.01004)."""

import dataclasses

from torch import nn

from codyra_llm.adapter import CoDyRAConfig, ThresholdSchedule
from codyra_llm.errors import UserError
from codyra_llm.methods.base import Method, Prepared


class CoDyRA(Method):
    """Trains the gates. The optimizer applies the threshold (`ProximalAdamW`); this class creates its schedule."""

    name = "codyra"
    summary = "importance-gated rank, thresholded, pruned and merged after each task"
    trains_gates = True

    @property
    def adapter(self) -> CoDyRAConfig:
        """The adapter configuration of the run, unchanged."""
        return self.config.adapter

    def check(self, task: str, total_steps: int) -> None:
        """Raises UserError if nothing can be pruned in a task of `total_steps` optimizer steps."""
        schedule = self._schedule(total_steps)
        if not schedule or schedule.can_prune:
            return
        if not schedule.sparse_steps:
            reason, remedy = "no step is sparse", f"lower adapter.dense_fraction {self.adapter.dense_fraction:g}"
        else:
            reason = f"{schedule.sparse_steps} sparse steps are too few in {self.adapter.threshold_mode} mode"
            remedy = "use adapter.threshold_mode importance or budget, or more steps"
        raise UserError(f"task {task}: the threshold can prune nothing in {total_steps} steps: {reason}; {remedy}")

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Prepared:
        """Prepares the task as fixed-rank LoRA does, and adds the threshold schedule."""
        return dataclasses.replace(super().prepare(model, task, total_steps), schedule=self._schedule(total_steps))

    def _schedule(self, total_steps: int) -> ThresholdSchedule | None:
        return ThresholdSchedule(self.adapter, total_steps) if self.adapter.train_gates else None
