"""The time of a run by phase: each task's steps, checkpoints, ledger and merge, and the evaluation after it."""

from collections.abc import Mapping
from dataclasses import dataclass

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from codyra_llm.config import EvaluateConfig, RunConfig
from codyra_llm.engine.zero import EVALUATION_MARGIN
from codyra_llm.planning.ceilings import Ceilings
from codyra_llm.planning.memory import Traffic
from codyra_llm.planning.time_model import (
    Questions,
    Shape,
    StepTime,
    asking_seconds,
    collective_seconds,
    merge_seconds,
    micro_batch_seconds,
    step_time,
    with_host,
    writing_seconds,
)

# rows, prompt, answer and new tokens of TRACE's six suites (docs/general.md): rows as published, limits of
# tasks/general, typical prompt lengths including few-shot examples; the choices of one item share a row
SUITES = {
    "mmlu": Questions(14042, 700, 4),
    "gsm8k": Questions(1319, 1200, 0, 256),
    "bbh": Questions(6511, 900, 0, 512),
    "tydiqa": Questions(5077, 600, 0, 48),
    "boolq": Questions(3270, 170, 2),
    "piqa": Questions(1838, 40, 40),
}


@dataclass(frozen=True)
class Files:
    """Bytes of a checkpoint within a task and of a ledger entry, and the number of projections that this changes."""

    checkpoint: int
    entry: int
    projections: int


@dataclass(frozen=True)
class StepModel:
    """The model of a step's time, for any way of running: model shape, ceilings, and relative cost of the method."""

    shape: Shape
    ceilings: Ceilings
    relative_cost: float = 1

    def step(
        self,
        rows: tuple[int, int, float, int],
        accumulation: int,
        touched: int,
        traffic: Traffic,
        zero: DeepSpeedZeroConfig,
        ranks: int,
        recompute: bool,
    ) -> StepTime:
        """Returns the time of an optimizer step.

        Args:
            rows: (rows of a micro batch, tokens of the longest row, mean tokens of a row, answer tokens of a row).
            accumulation: micro batches of a step on one rank.
            touched: as for `micro_batch_seconds`, for rows that are all as long as the longest.
            traffic: of the step.
            zero: DeepSpeed's section "zero_optimization".
            ranks: number of ranks.
            recompute: whether gradient checkpointing is used.
        """
        micro, longest, mean, answers = rows
        share = mean / longest
        of_micro = (round(micro * mean), mean, round(micro * answers * share), recompute, touched * share)
        compute = micro_batch_seconds(self.shape, self.ceilings, *of_micro)
        compute *= accumulation * self.relative_cost
        overlaps = bool(zero.overlap_comm)
        stage, trainable = int(zero.stage), self.shape.branches
        return step_time(compute, traffic, stage, ranks, self.ceilings, overlaps, trainable)


@dataclass(frozen=True)
class TaskTime:
    """Seconds of a task by phase; None if the amount of work is not known. Task "" is the base model."""

    task: str
    steps: int | None
    training: float | None
    checkpoints: float | None
    merge: float
    evaluation: float | None
    general: float | None

    @property
    def total(self) -> float:
        """Seconds of all known phases."""
        return sum(part or 0 for part in (self.training, self.checkpoints, self.merge, self.evaluation, self.general))


@dataclass(frozen=True)
class RunTime:
    """Seconds of a run: `start` for loading and hashing the model, `save` for writing it.

    `whole`: whether each rank has all weights in an evaluation.
    """

    ceilings: Ceilings
    step: StepTime
    whole: bool
    start: float
    save: float
    tasks: list[TaskTime]

    @property
    def total(self) -> float:
        """Seconds of all known phases."""
        return self.start + self.save + sum(task.total for task in self.tasks)


def holds_whole(gather: str, weights: int, free: int) -> bool:
    """True if an evaluation at stage 3 gathers all weights on each rank (`evaluate.gather`).

    Args:
        gather: the setting.
        weights: bytes of all weights.
        free: bytes available on a device.
    """
    return gather == "always" or (gather == "auto" and weights * EVALUATION_MARGIN <= free)


def run_time(
    config: RunConfig,
    of_steps: StepModel,
    step: StepTime,
    steps: Mapping[str, int | None],
    questions: Mapping[str, Questions | None],
    files: Files,
    ranks: int,
    stage: int,
    whole: bool,
) -> RunTime:
    """Returns the time of a run: of each task, and of evaluating the base model.

    Args:
        config: of the run.
        of_steps: model shape and ceilings.
        step: time of an optimizer step in this way of running.
        steps: optimizer steps of each task; None if not known.
        questions: test rows of each task; None if not known.
        files: sizes of checkpoints and ledger entries.
        ranks: number of ranks.
        stage: ZeRO stage.
        whole: whether each rank has all weights in an evaluation.
    """
    shape, ceilings = of_steps.shape, of_steps.ceilings
    gather = 0.0
    if not whole:
        calls = files.projections + shape.layers
        gather = collective_seconds(shape.weights * (ranks - 1) / ranks, calls, ranks, ceilings)
        gather = with_host(gather, calls * ceilings.fetch, ceilings)
    how = (config.evaluate.batch_size, ranks, gather)
    names = list(steps)

    def scored(number: int) -> float | None:
        """Returns the seconds of scoring tasks after `number` tasks were learned; None if not known."""
        asked = [questions[name] for name in asked_after(config.evaluate, names, number)]
        known = [each for each in asked if each]
        return asking_seconds(shape, ceilings, known, *how) if len(known) == len(asked) else None

    def general(number: int) -> float | None:
        suites = _suites(config)
        if not suites or not config.general.is_due(names, number):
            return 0.0
        known = [each for each in suites if each]
        if len(known) < len(suites):
            return None
        return sum(asking_seconds(shape, ceilings, [each], *how) for each in known)  # one suite after another

    written, every = writing_seconds(files.checkpoint, ceilings), config.train.checkpoint_every
    tasks = [TaskTime("", 0, 0.0, 0.0, 0.0, scored(0), general(0))]
    for number, name in enumerate(names, 1):
        count = steps[name]
        entries = number if config.merge.mode == "exact" else 1
        merge = writing_seconds(files.entry, ceilings)
        merge += merge_seconds(shape, ceilings, files.entry, entries, files.projections, ranks, stage == 3)
        training = None if count is None else count * step.total
        checkpoints = None if count is None else (count - 1) // every * written
        tasks.append(TaskTime(name, count, training, checkpoints, merge, scored(number), general(number)))
    start = shape.weights / ceilings.disk + (shape.weights / ceilings.hashing if ranks > 1 else 0)
    return RunTime(ceilings, step, whole, start, shape.weights / ceilings.disk, tasks)


def asked_after(evaluate: EvaluateConfig, names: list[str], number: int) -> list[str]:
    """Returns the tasks that are scored after `number` tasks were learned (`evaluate.tasks`); 0: on the base model."""
    if evaluate.tasks == "last":
        return names if number == len(names) else []
    return names[:number] if evaluate.tasks == "seen" else names


def _suites(config: RunConfig) -> list[Questions | None]:
    """Returns the items of each suite of a run; None for a suite whose items are not known without its data."""
    names = [each for name in config.general.suites for each in (SUITES if name == "general" else [name])]
    found: list[Questions | None] = []
    for name in names:
        suite, limit = SUITES.get(name), config.general.limit
        rows = min(suite.rows, limit or suite.rows) if suite else 0
        found.append(suite and Questions(rows, suite.prompt, suite.answer, suite.new))
    return found
