"""The continual run: for each task train, merge, evaluate; then save. It can be interrupted anywhere and resumed."""

import dataclasses
import math
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from codyra_llm.adapter.injection import describe_targets, kind_of
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import ModuleRank
from codyra_llm.config import RunConfig, describe, load_config
from codyra_llm.data.stream import TaskStream
from codyra_llm.distributed.ranks import World, broadcast, on_rank_0, start
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.engine.checkpoint import Checkpoint, Checkpoints, Progress
from codyra_llm.engine.malloc import return_freed_memory
from codyra_llm.engine.state import TaskState
from codyra_llm.engine.train import StepReport, train_task
from codyra_llm.engine.zero import check_updates, load_base
from codyra_llm.errors import Stopped
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.evaluation.matrix import matrix_metrics
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.files import expand
from codyra_llm.ledger.apply import find_original, merge_entries, weights_to_save
from codyra_llm.ledger.entry import drift, write_entry
from codyra_llm.ledger.kept import read_kept, write_kept
from codyra_llm.ledger.ledger import Entry, Ledger, copy_entries, open_ledger, write_ledger
from codyra_llm.methods import METHODS
from codyra_llm.models.save import save_model
from codyra_llm.planning.run_plan import RunPlan, check_ranks_agree, plan_run
from codyra_llm.report.folder import RunFolder
from codyra_llm.report.model_card import model_card
from codyra_llm.report.plots import plot_general, plot_matrix, plot_ranks
from codyra_llm.report.reporter import Reporter
from codyra_llm.results import new_results, taken_up
from codyra_llm.workflows.evaluate import score_tasks
from codyra_llm.workflows.general_ability import base_identity, score_general, set_row
from codyra_llm.workflows.session import stoppable


def run(config: RunConfig | str | Path, stream: TaskStream | None = None) -> dict[str, Any]:
    """Teaches a model the tasks of a stream, one after another, and writes the run folder.

    A run folder that holds the same run is resumed (`config.resume`); one that is finished is left as it is.

    Args:
        config: a configuration, or the path of its YAML file.
        stream: the tasks; by default those that the configuration names.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the configuration, data, model or run folder is unfit; or a file cannot be written.
        Stopped: the run was asked to stop (SIGTERM, SIGUSR1, or a file `stop` in the run folder).
    """
    config = config if isinstance(config, RunConfig) else load_config(config)
    if stream is not None:  # what is saved as the configuration should not name tasks that were not run
        config = dataclasses.replace(config, order=tuple(stream.names), data_dir="(in memory)")
    world = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, world, stream)
    check_ranks_agree(config, world, plan)
    folder: RunFolder | None = on_rank_0(world, lambda: RunFolder(config))
    checkpoints = Checkpoints(folder.path / "checkpoints", plan.name(config)) if folder else None
    found: Checkpoint | None = None
    problems: list[str] = []
    on_rank_0(world, lambda: folder.forget_stops())  # type: ignore[union-attr]
    if config.resume == "auto":
        found, unfit = broadcast(on_rank_0(world, lambda: checkpoints.latest()))  # type: ignore[union-attr]
        problems = [f"skipped a checkpoint: {problem}" for problem in unfit]
    if found and found.progress.phase == "done":
        results = broadcast(on_rank_0(world, lambda: folder.finished()))  # type: ignore[union-attr]
        if results:
            if folder:
                folder.unlock()
                print(f"this run is finished: {folder.path}; `--resume never` starts over")
            return results
        found = dataclasses.replace(found, progress=dataclasses.replace(found.progress, phase="save"))
        problems.append("the finished run lacks its model or its results; they are made again from ledger and base")
    with stoppable(world, folder) as stop:
        return _Run(config, world, plan, folder, checkpoints, found, problems, stop).run()


class _Run:
    """The state of one run: the model, the results so far, where it stands, and where it writes (on rank 0)."""

    def __init__(
        self,
        config: RunConfig,
        world: World,
        plan: RunPlan,
        folder: RunFolder | None,
        checkpoints: Checkpoints | None,
        found: Checkpoint | None,
        problems: list[str],
        stop: StopRequest,
    ) -> None:
        self.config, self.world, self.plan, self.stop = config, world, plan, stop
        self.stream, self.tokenizer = plan.stream, plan.tokenizer
        self.folder: Any = folder
        self.checkpoints: Any = checkpoints
        self.method = METHODS[config.method](config)
        notes = list(plan.notes)
        begun = found.progress.ledger if found else None
        self.ledger: Ledger = broadcast(on_rank_0(world, lambda: open_ledger(config, begun)))
        self.model = load_base(config, plan.deepspeed_json, world, notes.append)
        self.original = find_original(config)
        on_rank_0(world, lambda: self.folder.open(resumed=found is not None))
        if config.model.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.phases = [*_phases(config, len(self.stream)), (len(self.stream), "done")]
        self.results = new_results(config, plan, self.model, world.size)
        self.position: tuple[int, str] = self.phases[0]
        self.global_step = 0
        self.marked = time.perf_counter()
        self.resumed: TaskState | None = None
        self.kept: dict[str, str] = {}  # the file of what the method keeps, with its hash
        if found:
            self._take_up(found)
        else:
            on_rank_0(world, lambda: copy_entries(self.ledger, expand(config.extend or ""), self.folder.ledger))
            self._merge_entries(len(self.ledger.entries))
            self._checkpoint(*self.position)
        self.report = on_rank_0(world, lambda: Reporter(folder, self.global_step)) or Reporter(None, 0)
        for note in [*problems, *notes]:
            self.report.log.warning(note)
        self._greet(found)

    def run(self) -> dict[str, Any]:
        steps: dict[str, Callable[[int], None]] = {
            "train": self._train,
            "merge": self._merge,
            "evaluate": self._evaluate,
            "save": self._save,
        }
        for (number, phase), following in pairwise(self.phases[self.phases.index(self.position) :]):
            steps[phase](number)
            self._checkpoint(*following)
        self.report.farewell(self.results)
        return self.results

    def _take_up(self, found: Checkpoint) -> None:
        """Restores results, merged tasks and a partially trained task's adapters from a checkpoint."""
        progress = found.progress
        self.position = (progress.task, progress.phase)
        self.global_step = progress.global_step
        self.results = taken_up(progress.results, self.results, self.position, progress.step)
        if self.position[1] == "train" and progress.step:
            self.resumed = TaskState(progress.step, dict(found.tensors))
        self.kept = progress.kept
        if self.kept:
            (file,) = self.kept
            self.method.kept = broadcast(on_rank_0(self.world, lambda: read_kept(self.folder.path / file)))
        found.tensors.clear()  # else they would be held as long as the run goes on
        self._merge_entries(len(self.ledger.entries) - (self.position[1] == "merge"))

    def _train(self, number: int) -> None:
        task, batches = self.stream.tasks[number - 1], self.plan.batches[number - 1]
        prepared = self.method.prepare(self.model, task.name, batches.total_steps)
        entry = self._begin(task.name, "train")
        resumed, self.resumed = self.resumed, None
        if not resumed:
            self.results["losses"].append({"task": task.name, "loss": []})
        targets = describe_targets(prepared.wrapped)
        self.report.log.info(f"\ntask {number} of {len(self.stream)}: {task.name}, {targets}")
        progress = self.report.progress(task.name, batches.total_steps, resumed.step if resumed else 0)

        def on_step(report: StepReport, read: Callable[[], dict[str, torch.Tensor]]) -> None:
            self.global_step += 1
            self.report.step(report, self.global_step, progress)
            self.results["losses"][-1]["loss"].append(report.loss)
            entry["tokens"] += report.tokens
            done, stop = report.step + 1, self.stop.agreed()
            if stop or (done % self.config.train.checkpoint_every == 0 and done < batches.total_steps):
                self._checkpoint(number, "train", done, read())
            if stop:
                raise Stopped(f"in task {number} ({task.name}), after step {done} of {batches.total_steps}")

        train_task(
            self.model,
            prepared.optimizer,
            prepared.schedule,
            batches,
            self.config.train,
            self.plan.deepspeed_json,
            self.world,
            on_step,
            resumed,
            self.method,
        )
        progress.close()
        self._begin(task.name, "prune and merge")
        self.report.gates(gated_layers(self.model), number)
        kept, updates = self.method.finish(self.model)
        check_updates(self.model, updates, task.name)
        name, base = self.ledger.name_of_next(task.name), self.config.model.name_or_path
        written = on_rank_0(self.world, lambda: write_entry(self.folder.ledger / name, updates, base))
        files, settings = broadcast((written, self.checkpoints and self.checkpoints.run))
        self.ledger = self.ledger.with_entry(
            Entry(
                name,
                task.name,
                files,
                projections=sum(module.rank > 0 for module in kept),
                components=sum(module.rank for module in kept),
                norm=sum(module.norm**2 for module in kept) ** 0.5,
                settings=settings,
            )
        )
        if self.method.kept:
            self.kept = broadcast(on_rank_0(self.world, lambda: write_kept(self.folder.kept, name, self.method.kept)))
        self._keep_ranks(task.name, number, kept)

    def _merge(self, number: int) -> None:
        task = self.stream.names[number - 1]
        self._begin(task, "prune and merge")

        def agree() -> None:
            if self.stop.agreed():
                raise Stopped(f"while merging task {number} ({task})")

        self._merge_entries(len(self.ledger.entries), last_only=True, before=agree)

    def _merge_entries(self, count: int, last_only: bool = False, before: Callable[[], None] = lambda: None) -> None:
        names = [entry.name for entry in self.ledger.entries[:count]]
        ledger = self.folder.ledger if self.folder else None
        merge_entries(self.model, self.original, ledger, names, self.world, last_only, before)

    def _evaluate(self, number: int) -> None:
        """Scores the model after `number` tasks (0: the base model) and adds a row to the matrix."""
        which = range(number if self.config.evaluate.tasks == "seen" else len(self.stream))
        after = self.stream.names[number - 1] if number else "base"
        row_name = f"{number}-{after}"
        entry = self._begin(after, "evaluate")
        ways = (self.config.evaluate, self.world, self.folder, self.stop)
        scored = score_tasks(self.model, self.plan, which, *ways, row_name, trained=number > 0)
        entry["tokens"] = sum(scores.tokens for scores in scored)
        for i, scores in zip(which, scored, strict=True):
            self._set_cell(number, i, scores)
        named = self.config.general.after
        if self.plan.suites and (not number or not named or after in named):
            self._measure_general(row_name)
        self.report.scores(self.results, number)
        if number:
            row = zip(self.stream.names, self.results["matrix"][number], strict=True)
            self.ledger = self.ledger.with_scores({task: score for task, score in row if score is not None})
        self.results["metrics"] = {variant: matrix_metrics(self.results["matrices"][variant]) for variant in VARIANTS}

        def write() -> None:
            for i, scores in zip(which, scored, strict=True):
                self.folder.write_predictions(row_name, self.stream.names[i], scores.rows)

        on_rank_0(self.world, write)

    def _measure_general(self, row_name: str) -> None:
        """Adds the model's general ability as it stands, and its change against the base model where that is known."""
        config, model, tokenizer, world = self.config, self.model, self.tokenizer, self.world
        whom = base_identity(config, model, tokenizer, world, self.ledger) if row_name == "0-base" else None
        found = score_general(
            model, tokenizer, self.plan.suites, config.evaluate, world, self.folder, self.stop, row_name, whom
        )
        self.report.general(row_name, set_row(self.results["general"], row_name, found))

    def _save(self, number: int) -> None:
        self._begin(self.stream.names[-1], "save")
        folders = [self.folder.ledger / entry.name for entry in self.ledger.entries] if self.folder else None
        model, layout, weights = weights_to_save(self.config, self.model, self.original, folders)

        def save() -> None:
            try:
                name, card = self.config.model.name_or_path, model_card(self.results)
                save_model(model, layout, weights, self.tokenizer, self.folder.model, card, base=name)
            finally:
                deque(weights, maxlen=0)  # whatever went wrong, the other ranks go through all of them

        if not self.world.is_main:
            deque(weights, maxlen=0)
        on_rank_0(self.world, save)
        on_rank_0(self.world, lambda: plot_matrix(self.results, self.folder.path / "matrix.png"))
        on_rank_0(self.world, lambda: plot_ranks(self.results, self.folder.path / "ranks.png"))
        if self.results["general"]["scores"]:
            on_rank_0(self.world, lambda: plot_general(self.results, self.folder.path / "general.png"))

    def _checkpoint(
        self, number: int, phase: str, step: int = 0, tensors: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Writes all that is needed to resume at the start of a phase, or in the middle of it."""
        if phase in ("train", "save") and not step:  # a task is done
            return_freed_memory()
        began = self._tick()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.results["peak_memory_bytes"] = max(self.results["peak_memory_bytes"], peak)
        if self.results["phases"]:
            self.results["phases"][-1]["resident_bytes"] = psutil.Process().memory_info().rss
        progress = Progress(
            number,
            phase,
            step,
            self.global_step,
            dataclasses.asdict(self.ledger),
            self.results,
            self.kept,
        )
        rests_on = {f"ledger/{name}": digest for name, digest in self.ledger.files.items()} | self.kept

        def write() -> None:
            if not step:
                self.folder.write_results(self.results)
                self.folder.write_matrix(self.stream.names, self.results["matrix"])
                write_ledger(self.folder.ledger, self.ledger)
            self.checkpoints.write(progress, tensors or {}, rests_on)
            if not step:
                self.folder.drop_answers()

        on_rank_0(self.world, write)
        if phase != "done":  # what is written last must be what is returned
            self.results["checkpoint_seconds"] += time.perf_counter() - began

    def _keep_ranks(self, task: str, number: int, kept: list[ModuleRank]) -> None:
        norms = broadcast(
            on_rank_0(self.world, lambda: drift([self.folder.ledger / entry.name for entry in self.ledger.entries]))
        )
        by_kind: dict[str, list[int]] = {}
        for module in kept:
            by_kind.setdefault(kind_of(module.name), []).append(module.rank)
        entry = {
            "task": task,
            "mean": sum(m.rank for m in kept) / len(kept),
            "initial": kept[0].initial_rank,
            "by_projection": {kind: sum(ranks) / len(ranks) for kind, ranks in by_kind.items()},
            "update_norm": sum(m.norm**2 for m in kept) ** 0.5,
            "cumulative_norm": sum(norm**2 for norm in norms.values()) ** 0.5,
        }
        self.results["ranks"].append(entry)
        self.report.ranks(entry, self.results["losses"][-1]["loss"][-1], number)
        on_rank_0(self.world, lambda: self.folder.append_ranks(task, kept, norms))

    def _set_cell(self, number: int, i: int, scores: TaskScores) -> None:
        for variant in VARIANTS:
            self.results["matrices"][variant][number][i] = scores.totals[variant]
        self.results["matrix"][number][i] = scores.totals[self.config.evaluate.scorer_variant]
        self.results["answer_nll"][number][i] = scores.nll if math.isfinite(scores.nll) else None

    def _begin(self, task: str, phase: str) -> dict[str, Any]:
        """Starts, or resumes, the record of a phase's seconds and tokens."""
        self._tick()
        phases = self.results["phases"]
        if not phases or (phases[-1]["task"], phases[-1]["phase"]) != (task, phase):
            phases.append({"task": task, "phase": phase, "seconds": 0.0, "tokens": 0})
        return phases[-1]

    def _tick(self) -> float:
        """Adds the time since the last call to the current phase and to the run; returns the time."""
        now = time.perf_counter()
        for record in (self.results, *self.results["phases"][-1:]):
            record["seconds"] += now - self.marked
        self.marked = now
        return now

    def _greet(self, found: Checkpoint | None) -> None:
        model, log = self.results["model"], self.report.log
        log.info(
            f"{model['name']}: {model['architecture']}, {model['parameters']:,} parameters; "
            f"{self.stream.name}: {len(self.stream)} tasks; method {self.config.method}; "
            f"ZeRO stage {self.results['zero_stage']} on {self.world.size} x {self.world.device.type}"
        )
        log.info(f"settings: {describe(self.config)}; all others by default")
        if not self.original and self.config.model.dtype != "float32":
            log.info(f"updates are merged in place: each task rounds the weights to {self.config.model.dtype} again")
        if found:
            number, phase = self.position
            step = f", after step {found.progress.step}" if found.progress.step else ""
            task = f"task {number} ({self.stream.names[number - 1]})" if number else "the base model"
            log.info(f"going on with: {phase} {task}{step}")


def _phases(config: RunConfig, tasks: int) -> Iterator[tuple[int, str]]:
    """(task from 1, or 0 for the base model; phase) in the order of the run."""
    if config.evaluate.tasks != "last":
        yield 0, "evaluate"
    for number in range(1, tasks + 1):
        yield number, "train"
        yield number, "merge"
        if config.evaluate.tasks != "last" or number == tasks:
            yield number, "evaluate"
    yield tasks, "save"
