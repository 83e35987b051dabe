"""The threshold over a task: zero in the dense stage, then a ramp."""

import math

import torch

from codyra_llm.adapter.config import IMPORTANCE_CLIP, CoDyRAConfig


class ThresholdSchedule:
    """The threshold of each optimizer step of one task, a pure function of the step.

    `importance` and `budget`: zero for `dense_fraction` of the steps, then a linear ramp whose values add up to
    `strength` S, with slope towards kappa_max = 2S / sparse_steps. A gate is therefore shrunk by the same total in a
    task of 15 steps and in one of 1,500.

    `reference`: the official code. The index into linspace(0, strength, ramp_levels) grows by one every
    floor(sparse steps / ramp_levels) iterations; the threshold is applied from the iteration after the dense stage.
    With fewer sparse steps than levels it stays zero, and nothing is ever pruned.

    Args:
        config: mode, strength, dense fraction and levels.
        total_steps: optimizer steps of the task.
    """

    def __init__(self, config: CoDyRAConfig, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps
        self.dense_steps = config.dense_fraction * total_steps
        self.sparse_steps = total_steps - math.ceil(self.dense_steps)

    def threshold(self, step: int) -> float:
        """Returns kappa of optimizer step `step`, counted from 0."""
        return self._reference(step) if self.config.threshold_mode == "reference" else self._ramp(step)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the step's threshold in the optimizer's gate groups and returns it; call it before the step."""
        threshold = self.threshold(step)
        for group in optimizer.param_groups:
            if "threshold_mode" in group:
                group["threshold"] = threshold
        return threshold

    def compacts(self, step: int) -> bool:
        """True if components at zero are to be removed from the products from this step on."""
        every = self.config.compact_every
        return every > 0 and step >= self.dense_steps and step % every == 0

    @property
    def can_prune(self) -> bool:
        """True if the thresholds of all steps can shrink some gate from its initial value to zero."""
        shrink = sum(self.threshold(step) for step in range(self.total_steps))
        if self.config.threshold_mode == "importance":
            shrink *= IMPORTANCE_CLIP[1]
        return shrink >= 1 - 1e-9 if self.config.gates_start_at_one else shrink > 0

    def _ramp(self, step: int) -> float:
        position = step - math.ceil(self.dense_steps)
        if position < 0:
            return 0.0
        return 2 * self.config.strength / self.sparse_steps * (position + 0.5) / self.sparse_steps

    def _reference(self, step: int) -> float:
        levels = self.config.ramp_levels
        interval = math.floor((self.total_steps - self.dense_steps) / levels)
        if interval == 0 or step <= self.dense_steps:
            return 0.0
        index = step // interval - math.ceil(self.dense_steps / interval) + 1
        # numpy's linspace, the official table, multiplies the level by the spacing
        return self.config.strength if index >= levels - 1 else index * (self.config.strength / (levels - 1))
