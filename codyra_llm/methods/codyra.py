"""CoDyRA: gated branches, thresholded while they train, pruned and merged after each task (arXiv 2412.01004)."""

import dataclasses
from dataclasses import dataclass

from torch import nn

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, prune
from codyra_llm.adapter.merge import Deltas, ModuleRank, deltas, unwrap
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """What a method hands to the training loop: the wrapped projections, their optimizer, their schedule."""

    wrapped: list[str]
    optimizer: Proximal
    schedule: ThresholdSchedule | None


class CoDyRA:
    """The method's part of a run: what happens to the model before and after the training of a task."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def adapter(self) -> CoDyRAConfig:
        """The adapter that every task starts with."""
        return self.config.adapter

    def check(self, task: str, total_steps: int) -> None:
        """Raises UserError where a task of so many optimizer steps could not be pruned at all."""
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
        """Fresh branches and a fresh optimizer for a task; the draws depend on (seed, task, projection) alone."""
        wrapped = inject(model, self.adapter, seed=f"{self.config.seed}/{task}")
        train = self.config.train
        optimizer = _optimizer(train.adam_bits).for_model(
            model,
            self.adapter,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
        )
        return Prepared(wrapped, optimizer, self._schedule(total_steps))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Prunes, and takes the branches out of the model: what each module kept, and the updates to be merged."""
        scale = self.config.merge.scale
        report = prune(model)
        updates = deltas(model, scale)
        unwrap(model)
        scaled = [dataclasses.replace(kept, norm=scale * kept.norm, bound=scale * kept.bound) for kept in report]
        return scaled, updates

    def _schedule(self, total_steps: int) -> ThresholdSchedule | None:
        return ThresholdSchedule(self.adapter, total_steps) if self.adapter.train_gates else None


def _optimizer(bits: int) -> type[Proximal]:
    if bits == 32:
        return ProximalAdamW
    from codyra_llm.adapter.optimizer_8bit import ProximalAdamW8bit  # imports bitsandbytes, which takes a second

    return ProximalAdamW8bit
