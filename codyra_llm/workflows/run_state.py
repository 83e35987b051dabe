"""The state of a run (model, results, position), created or restored from a checkpoint, and saved in checkpoints."""

import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from codyra_llm.config import RunConfig, describe
from codyra_llm.data.stream import Task
from codyra_llm.distributed.ranks import broadcast
from codyra_llm.engine.checkpoint import Checkpoint, Checkpoints, Progress
from codyra_llm.engine.malloc import return_freed_memory
from codyra_llm.engine.state import TaskState
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.files import expand
from codyra_llm.ledger.apply import Original, find_original, merge_entries
from codyra_llm.ledger.combination import combination
from codyra_llm.ledger.entry import Combine
from codyra_llm.ledger.kept import read_kept
from codyra_llm.ledger.ledger import Ledger, copy_entries, open_ledger, write_ledger
from codyra_llm.methods import METHODS
from codyra_llm.methods.base import Method
from codyra_llm.planning.data_table import describe_plan
from codyra_llm.planning.run_plan import RunPlan
from codyra_llm.report.reporter import Reporter
from codyra_llm.results.provenance import provenance
from codyra_llm.results.schema import General, Phase, RunResults, new_results, parse_results
from codyra_llm.workflows.session import Session

LOG = logging.getLogger(__name__)
Position = tuple[Stage, str]  # a stage of the run, and its phase to do next: train, merge, evaluate, ...


@dataclass
class RunState:
    """One run.

    Attributes:
        config: the configuration.
        plan: the plan.
        session: the session of the command.
        checkpoints: on rank 0; None on the others.
        method: the method.
        ledger: the ledger.
        model: the model.
        original: the base weights that updates are added to if the model's own are rounded.
        results: the results so far.
        report: the reporter.
        position: the phase to do next.
        global_step: optimizer steps done in the run.
        resumed: the branches and moments of a task whose training was interrupted.
        kept: path and SHA-256 of the file that the method keeps.
        shares_base: whether the base model's answers are shared with other runs of a comparison.
        ticked: time of the last call of `tick`.
    """

    config: RunConfig
    plan: RunPlan
    session: Session
    checkpoints: Checkpoints | None
    method: Method
    ledger: Ledger
    model: PreTrainedModel
    original: Original | None
    results: RunResults
    report: Reporter
    position: Position
    global_step: int = 0
    resumed: TaskState | None = None
    kept: dict[str, str] = field(default_factory=dict)
    shares_base: bool = False
    ticked: float = field(default_factory=time.perf_counter)

    @property
    def remaining(self) -> list[Position]:
        """The positions still to be done; the last one, "done", requires no work."""
        every = [*phases(self.config, self.plan.stages), (self.plan.stages[-1], "done")]
        return every[every.index(self.position) :]

    def task(self, stage: Stage) -> Task:
        """Returns the task that a stage ends."""
        return self.plan.stream.tasks[stage.number - 1]

    @property
    def entry_folders(self) -> list[Path]:
        """Folders of the ledger's entries, in order; on rank 0."""
        return [self.session.folder.ledger / entry.name for entry in self.ledger.entries]

    @property
    def combine(self) -> Combine | None:
        """The function that combines the entries to one update; None if they are summed."""
        return combination(self.ledger.combined, "the ledger")

    def merge(self, count: int, last_only: bool = False, before: Callable[[], None] = lambda: None) -> None:
        """Adds the ledger's first `count` entries, or the last of these; calls `before` before each weight is set."""
        names = [entry.name for entry in self.ledger.entries[:count]]
        folder = self.session.folder.ledger if self.session.folder else None
        merge_entries(self.model, self.original, folder, names, self.session.ranks, last_only, self.combine, before)

    def begin(self, stage: Stage, phase: str) -> Phase:
        """Starts, or resumes, the record of a phase's seconds and tokens."""
        self.tick()
        records = self.results.phases
        if not records or (records[-1].task, records[-1].phase) != (stage.task, phase):
            records.append(Phase(stage.task, phase))
        return records[-1]

    def tick(self) -> float:
        """Adds the time since the last call to the current phase and to the run; returns the current time."""
        now = time.perf_counter()
        records: list[RunResults | Phase] = [self.results, *self.results.phases[-1:]]
        for record in records:
            record.seconds += now - self.ticked
        self.ticked = now
        return now

    def checkpoint(self, position: Position, step: int = 0, tensors: dict[str, torch.Tensor] | None = None) -> None:
        """Writes a checkpoint to resume at a phase or, with `step` and `tensors`, in the middle of it."""
        stage, phase = self.position = position
        if phase in ("train", "save") and not step:  # a task is done
            return_freed_memory()
        began = self.tick()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.results.peak_memory_bytes = max(self.results.peak_memory_bytes, peak)
        if self.results.phases:
            self.results.phases[-1].resident_bytes = psutil.Process().memory_info().rss
        self.session.on_rank_0(lambda: self._write(stage, phase, step, tensors or {}))
        if phase != "done":  # the last results written must equal those returned
            self.results.checkpoint_seconds += time.perf_counter() - began

    def _write(self, stage: Stage, phase: str, step: int, tensors: dict[str, torch.Tensor]) -> None:
        assert self.checkpoints
        folder, ledger = self.session.folder, self.ledger.content
        if not step:
            folder.write_results(self.results)
            folder.write_matrix(self.results.tasks, self.results.matrix)
            write_ledger(folder.ledger, self.ledger)
        rests_on = {f"ledger/{name}": digest for name, digest in self.ledger.files.items()} | self.kept
        progress = Progress(
            stage.number, phase, step, self.global_step, ledger, dataclasses.asdict(self.results), self.kept
        )
        self.checkpoints.write(progress, tensors, rests_on)
        if not step:
            folder.drop_answers()


def phases(config: RunConfig, stages: list[Stage]) -> Iterator[Position]:
    """Yields every phase of a run, in order."""
    last = stages[-1]
    for stage in stages:
        if stage.number:
            yield stage, "train"
            yield stage, "merge"
        if config.evaluate.tasks != "last" or stage == last:
            yield stage, "evaluate"
    yield last, "save"


def open_run(
    config: RunConfig, plan: RunPlan, session: Session, checkpoints: Checkpoints | None, found: Checkpoint | None
) -> RunState:
    """Loads the model, opens the folder, and restores both from a checkpoint, or starts the run."""
    begun = found.progress.ledger if found else None
    ledger: Ledger = broadcast(session.on_rank_0(lambda: open_ledger(config, plan.source, begun)))
    session.notes += plan.notes
    model = session.load(plan.source, config, plan.deepspeed_json, plan.end_ids, plan.domain)
    original = find_original(config, plan.source)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    general = General(items={suite.name: suite.items for suite in plan.suites})
    source = provenance(config, plan.deepspeed_json, model, session.ranks.size)
    results = new_results(source, plan.data(config), general, plan.domain.facts.variants)
    session.open(describe(config), resumed=found is not None)
    run = RunState(
        config,
        plan,
        session,
        checkpoints,
        METHODS[config.method](config),
        ledger,
        model,
        original,
        results,
        Reporter(session.folder, config, found.progress.global_step if found else 0, plan.domain.facts.unit),
        next(phases(config, plan.stages)),
    )
    _log_start(run)
    if found:
        _restore(run, found)
    else:
        session.on_rank_0(lambda: copy_entries(ledger, expand(config.extend or ""), session.folder.ledger))
        run.merge(len(ledger.entries))
        run.checkpoint(run.position)
    return run


def _restore(run: RunState, found: Checkpoint) -> None:
    """Restores results, merged tasks and a partially trained task's branches from a checkpoint."""
    progress, session = found.progress, run.session
    stage, phase = run.position = (run.plan.stages[progress.task], progress.phase)
    run.global_step, run.kept = progress.global_step, progress.kept
    earlier = parse_results(progress.results, "results in the checkpoint")
    run.results = earlier.resumed(run.results, stage.number, phase, progress.step)
    if phase == "train" and progress.step:
        run.resumed = TaskState(progress.step, dict(found.tensors))
    found.tensors.clear()  # otherwise they would stay in memory during the run
    if run.kept:
        (file,) = run.kept
        run.method.kept = broadcast(session.on_rank_0(lambda: read_kept(session.folder.path / file)))
    run.merge(len(run.ledger.entries) - (phase == "merge"))
    step = f", after step {progress.step}" if progress.step else ""
    task = f"task {stage.number} ({stage.task})" if stage.number else "the base model"
    LOG.info(f"resuming with: {phase} {task}{step}")


def _log_start(run: RunState) -> None:
    config, ranks, model = run.config, run.session.ranks, run.results.model
    LOG.info(
        f"{model.name}: {model.architecture}, {model.parameters:,} parameters; "
        f"{run.plan.stream.name}: {len(run.plan.stream)} tasks; method {config.method}; "
        f"ZeRO stage {run.results.zero_stage} on {ranks.size} x {ranks.device.type}"
    )
    LOG.info(f"\n{describe_plan(run.plan, config, ranks.size)}")
    if not run.original and config.model.dtype != "float32":
        LOG.info(f"updates are merged in place: each task rounds the weights to {config.model.dtype} again")
