"""CoDyRA in two parts: branches learn the task at full rank, then only their gates are fitted and thresholded."""

import dataclasses
import math
from dataclasses import dataclass

import torch

from codyra_llm.adapter import CoDyRAConfig, ThresholdSchedule
from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.methods.codyra import CoDyRA
from codyra_llm.options import ABOVE_ZERO, FRACTION, option


@dataclass(frozen=True)
class RefitSettings:
    """Settings of the second part of a task, in which only the gates train."""

    share: float = option(0.25, "share of a task's steps, the last ones, in which gates alone train", within=FRACTION)
    learning_rate: float = option(0.02, "peak learning rate of the gates in it", within=ABOVE_ZERO)


class RefitCoDyRA(CoDyRA):
    """A and B train with gates at one; then they stop, and the gates train under the threshold.

    The gates are fitted on the loss that the run has in the second part. With `retention` this is the task's loss plus
    the retention terms, so both decide what is pruned. Each part has its own cosine schedule of the learning rate. The
    published method trains both at once; `adapter.dense_fraction` and `adapter.gate_learning_rate` are not used here.
    """

    name = "codyra_refit"
    summary = "codyra whose gates are fitted, and thresholded, after the branches have learned"
    Settings = RefitSettings

    @property
    def adapter(self) -> CoDyRAConfig:
        """The adapter configuration: trained gates that start at one, thresholded in the second part only."""
        return dataclasses.replace(
            self.config.adapter, train_gates=True, gate_init="ones", dense_fraction=1 - self.settings.share
        )

    def _schedule(self, total_steps: int) -> ThresholdSchedule | None:
        train = self.config.train
        return RefitSchedule(
            self.adapter, total_steps, (train.learning_rate, self.settings.learning_rate), train.warmup_steps
        )


class RefitSchedule(ThresholdSchedule):
    """A threshold schedule that starts when A and B stop training and the gates start.

    Args:
        rates: the peak learning rates of A and B, and of the gates.
    """

    def __init__(self, config: CoDyRAConfig, total_steps: int, rates: tuple[float, float], warmup_steps: int) -> None:
        super().__init__(config, total_steps)
        (self.rate, self.gates_rate), self.warmup_steps = rates, warmup_steps

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the learning rates of the part that the step belongs to, then applies the base schedule."""
        first = math.ceil(self.dense_steps)
        for group in optimizer.param_groups:
            if "threshold_mode" in group:
                group["lr"] = 0.0 if step < first else self.gates_rate * cosine_factor(step - first, self.sparse_steps)
            else:
                group["lr"] = self.rate * cosine_factor(step, first, self.warmup_steps) if step < first else 0.0
        return super().apply(optimizer, step)
