"""CoDyRA: gated branches, thresholded while they train, pruned and merged after each task (arXiv 2412.01004)."""

from dataclasses import dataclass

from torch import nn

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, merge, prune
from codyra_llm.adapter.merge import AddDelta, ModuleRank
from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """What a method hands to the training loop: the wrapped projections, their optimizer, their schedule."""

    wrapped: list[str]
    optimizer: ProximalAdamW
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
        if schedule and not schedule.can_prune:
            adapter = self.adapter
            sparse = schedule.sparse_steps
            reason = (
                f"{sparse} sparse steps are fewer than adapter.ramp_levels {adapter.ramp_levels}"
                if adapter.threshold_mode == "reference"
                else f"adapter.dense_fraction {adapter.dense_fraction:g} leaves no sparse step"
            )
            raise UserError(
                f"task {task}: the threshold can prune nothing in {total_steps} steps: {reason}; "
                "use adapter.threshold_mode importance or budget, or more steps"
                if adapter.threshold_mode == "reference"
                else f"task {task}: the threshold can prune nothing: {reason}; lower adapter.dense_fraction"
            )

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Prepared:
        """Fresh branches and a fresh optimizer for a task; the draws depend on (seed, task, projection) alone."""
        wrapped = inject(model, self.adapter, seed=f"{self.config.seed}/{task}")
        train = self.config.train
        optimizer = ProximalAdamW.for_model(
            model,
            self.adapter,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
        )
        return Prepared(wrapped, optimizer, self._schedule(total_steps))

    def finish(self, model: nn.Module, add_delta: AddDelta) -> list[ModuleRank]:
        """Prunes and merges; the model is plain again. Returns what each module kept."""
        report = prune(model)
        merge(model, self.config.merge.scale, add_delta)
        return report

    def _schedule(self, total_steps: int) -> ThresholdSchedule | None:
        return ThresholdSchedule(self.adapter, total_steps) if self.adapter.train_gates else None
