"""Training one task: the loop over optimizer steps, under any ZeRO stage."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.adapter.schedule import ThresholdSchedule
from codyra_llm.config import TrainConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks, local_rank_in_environment
from codyra_llm.engine.attach import Attached
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.learning import ANSWERS, Learning, Objective
from codyra_llm.engine.retention import KINDS, STATE, Retention
from codyra_llm.engine.state import TaskState, clear_padding, read_state, trainable, write_branches, write_moments
from codyra_llm.engine.validate import BEST, Validation
from codyra_llm.engine.zero import compact_branches, ungroup_branches, unpartition_branches
from codyra_llm.errors import UserError
from codyra_llm.methods.hooks import NO_HOOKS, Hooks


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        step: its number, from 0.
        loss: mean loss per answer token in nats.
        learning_rate: peak rate times schedule.
        threshold: the threshold of the gates.
        live_rank: mean number of non-zero gates of a branch.
        grad_norm: norm of the gradient.
        tokens: number of tokens of the step, without padding.
        penalty: value of the method's term on the branches, which is not part of `loss`.
        seconds: duration of the step.
        validation: loss on the validation rows, where it was measured after the step.
        divergences: divergences of retention, by kind, in nats per token.
        retention_factor: the factor on the weights of these divergences.
    """

    step: int
    loss: float
    learning_rate: float
    threshold: float
    live_rank: float
    grad_norm: float
    tokens: int
    penalty: float
    seconds: float
    validation: float | None = None
    divergences: Mapping[str, float] = field(default_factory=dict)
    retention_factor: float | None = None


GATHERED = "method."  # prefix of the names of what a method has gathered within a task
OnStep = Callable[[StepReport, Callable[[], dict[str, torch.Tensor]]], None]


@local_rank_in_environment()
def train_task(
    model: PreTrainedModel,
    optimizer: Proximal,
    schedule: ThresholdSchedule | None,
    batches: GlobalBatches,
    train: TrainConfig,
    deepspeed_json: dict[str, Any],
    ranks: Ranks,
    on_step: OnStep = lambda report, read: None,
    resumed: TaskState | None = None,
    hooks: Hooks = NO_HOOKS,
    validation: Validation | None = None,
    retention: Retention | None = None,
    learning: Learning = ANSWERS,
) -> list[StepReport]:
    """Trains the branches of a model on one task and leaves them whole on every rank.

    The loss of a step is that of all its rows (for answers, the sum over their tokens divided by their number over all
    ranks and micro batches), so it does not depend on how the step is partitioned.

    Args:
        model: a model with gated branches, which alone are trained.
        optimizer: the optimizer of the branches, new for this task.
        schedule: threshold of each step; None leaves the gates unchanged.
        batches: the rows of each step.
        train: the training settings.
        deepspeed_json: the user's part of the DeepSpeed configuration.
        ranks: the ranks of the run.
        on_step: called after each optimizer step, on every rank, with its report and a function that returns the whole
            trainable state on rank 0 (`read_state`; every rank must call it, or none).
        resumed: a state to resume from; its branches replace those of the model. Its tensors are removed.
        hooks: the method's hooks.
        validation: rows to validate on, with early stopping and the best step.
        retention: keeps the model close to the one before the task.
        learning: the module and objective to train, by default those of answers.

    Returns:
        A report for each optimizer step that was taken.

    Raises:
        UserError: loss, gradient or branches are no longer finite; or a branch got no gradient in any step.
    """
    first_step = resumed.step if resumed else 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    initial_ranks = [layer.rank for _, layer in gated_layers(model)]
    engine = _engine(learning.module(model, hooks), optimizer, complete(deepspeed_json, train, ranks.size), resumed)
    attached = Attached(hooks, model, engine, optimizer, batches, ranks, learning.passes)
    engine.train()
    measured = retention if retention and retention.config.measures else None
    objective = learning.objective(engine, batches, ranks, measured)
    steps = _Steps(
        model, engine, optimizer, schedule, batches, train, ranks, objective, attached, retention, peaks, initial_ranks
    )
    reports = []
    for step in range(first_step, batches.total_steps):
        if validation and validation.stops:
            break
        report = steps.take(step)
        hooks.end_step(report.loss)
        if retention:
            retention.update(report.divergences)
        if validation and validation.is_due(step + 1, batches.total_steps):
            found = validation.measure(step + 1, attached.passes, batches.micro_batch_size, ranks)
            report = dataclasses.replace(report, validation=found)
            if train.keep_best and validation.best_step == step + 1:
                state = read_state(model, engine, optimizer, ranks)
                validation.best = {name: state[name] for name, _, _ in trainable(model) if state}
        reports.append(report)
        on_step(report, lambda: _state(model, engine, optimizer, ranks, hooks, validation, retention))
    attached.end_training(batches.own)
    engine.destroy()
    unpartition_branches(model)
    if validation and train.keep_best:
        validation.restore_best(model)
    _check_branches(batches.task, model)
    return reports


@dataclass(frozen=True)
class _Steps:
    """The optimizer steps of a task.

    Attributes:
        peaks: the peak learning rate of each parameter group.
        initial_ranks: the rank of each branch before the first step.
    """

    model: PreTrainedModel
    engine: Any
    optimizer: Proximal
    schedule: ThresholdSchedule | None
    batches: GlobalBatches
    train: TrainConfig
    ranks: Ranks
    objective: Objective
    attached: Attached
    retention: Retention | None
    peaks: Sequence[float]
    initial_ranks: Sequence[int]

    def take(self, step: int) -> StepReport:
        """Takes one step, without what a method and retention do at its end.

        Raises:
            UserError: its loss or gradient is not finite.
        """
        began = time.perf_counter()
        # a model's random draws (dropout) depend on the step alone, not on what ran before it
        torch.manual_seed(self.batches.draw_seed(step, self.ranks.rank))
        factor, threshold = self._schedule(step)
        penalty = self.attached.begin_step(step)
        summed, of_kinds, live_gates = self._pass_and_update(step)
        mean_loss = self.objective.mean(step, summed)
        grad_norm = float(self.engine.get_global_grad_norm())
        _check_step(self.batches.task, step, mean_loss, grad_norm, self.model.dtype)
        retention = self.retention
        return StepReport(
            step,
            loss=mean_loss,
            learning_rate=self.train.learning_rate * factor,
            threshold=threshold,
            live_rank=(live_gates if self.schedule else sum(self.initial_ranks)) / len(self.initial_ranks),
            grad_norm=grad_norm,
            tokens=self.batches.tokens(step),
            penalty=penalty,
            seconds=time.perf_counter() - began,
            divergences=retention.means(step, of_kinds) if retention else {},
            retention_factor=retention.factor if retention else None,
        )

    def _schedule(self, step: int) -> tuple[float, float]:
        """Sets the step's learning rates and threshold; returns (factor on the peak rates, threshold)."""
        factor = cosine_factor(step, self.batches.total_steps, self.train.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        if not self.schedule:
            return factor, 0.0
        threshold = self.schedule.apply(self.optimizer, step)
        if self.schedule.compacts(step):
            compact_branches(self.model)
        return factor, threshold

    def _pass_and_update(self, step: int) -> tuple[float, list[float], float]:
        """Returns (summed loss, summed divergences of retention, number of live gates), over all ranks."""
        sums = torch.zeros(2 + len(KINDS), dtype=torch.float64, device=self.ranks.device)
        for loss, parts in self.objective.passes(step):
            sums[:-1] += parts.double()
            self.engine.backward(loss)
            self.engine.step()
        sums[-1] = self.optimizer.live_gates  # converted to float64 before it is divided
        sums[-1] /= 1 if self.engine.zero_optimization_stage() > 0 else self.ranks.size
        dist.all_reduce(sums)
        loss, *divergences, live_gates = sums.tolist()  # one read, as each is a synchronization with the device
        return loss, divergences, live_gates


def _state(
    model: PreTrainedModel,
    engine: Any,
    optimizer: Proximal,
    ranks: Ranks,
    hooks: Hooks,
    validation: Validation | None,
    retention: Retention | None,
) -> dict[str, torch.Tensor]:
    """Returns the tensors for a checkpoint in the middle of a task, on rank 0: `read_state` and other states."""
    state = read_state(model, engine, optimizer, ranks)
    if not state:
        return {}
    others = {
        BEST: validation.best if validation else {},
        GATHERED: {name: tensor.cpu() for name, tensor in hooks.gathered.items()},
        STATE: retention.state() if retention else {},
    }
    return state | {start + name: tensor for start, part in others.items() for name, tensor in part.items()}


def _engine(loss: Any, optimizer: Proximal, ds_config: dict[str, Any], resumed: TaskState | None) -> Any:
    """Returns a DeepSpeed engine around the loss, with the branches and moments of a state to resume from."""
    if resumed:
        write_branches(loss.model, resumed)
    engine, *_ = deepspeed.initialize(
        model=loss,
        optimizer=optimizer,
        model_parameters=[p for group in optimizer.param_groups for p in group["params"]],
        config=ds_config,
        dist_init_required=False,
    )
    if engine.zero_optimization_stage() == 0:
        _keep_grad_norm(engine)
    if resumed:
        write_moments(loss.model, engine, optimizer, resumed)
        resumed.tensors.clear()  # frees as much memory as the branches and their moments take
    if engine.zero_optimization_stage() == 3:
        clear_padding(loss.model, engine)  # zeros are not counted among the live gates
        ungroup_branches(loss.model)
    return engine


def _keep_grad_norm(engine: Any) -> None:
    """Stores the gradient norm in the engine at stage 0 as well, where DeepSpeed clips without storing it."""

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip


def _check_step(task: str, step: int, loss: float, grad_norm: float, dtype: torch.dtype) -> None:
    if math.isfinite(loss) and 0 <= grad_norm < math.inf:  # DeepSpeed reports some norms that are not finite as -1
        return
    found = f"the gradient norm is {grad_norm}" if math.isfinite(loss) else f"the loss is {loss}"
    remedy = "lower train.learning_rate"
    if dtype == torch.float16:
        remedy += ", or set model.dtype bfloat16 or float32"
    if step == 0:  # nothing has been learned yet, so that the learning rate is not the cause
        remedy = "the model's weights are damaged, or its values leave the range of the dtype; try another model.dtype"
    raise UserError(f"task {task} step {step}: {found} in {str(dtype).removeprefix('torch.')}; {remedy}")


def _check_branches(task: str, model: PreTrainedModel) -> None:
    """Raises UserError if a branch has invalid values, or training never reached it: its B is still zero.

    Exempt from the second check: components that tokens choose among (`mix`), which may never be chosen, and branches
    whose A is zero, which a method has left nothing to read.
    """
    layers = list(gated_layers(model))
    for name, layer in layers:
        if not all(torch.isfinite(factor.square().sum()) for factor in layer.factors()):
            raise UserError(
                f"task {task}: {name}: after the last step, the branch holds values that are not finite or whose "
                "squares are not; lower train.learning_rate"
            )
    untouched = [name for name, layer in layers if layer.mix is None and layer.A.any() and not layer.B.any()]
    if untouched:
        raise UserError(
            f"task {task}: no gradient reached {len(untouched)} of {len(layers)} projections, first {untouched[0]}; "
            "leave them out of adapter.target_modules, or look for what keeps them from being computed or trained"
        )
