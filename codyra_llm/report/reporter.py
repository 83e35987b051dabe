"""Progress output of a run: log, progress bars, curves, and the table at the end."""

import datetime
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from codyra_llm.adapter.injection import kind_of
from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.config import RunConfig
from codyra_llm.engine.train import StepReport
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.report import tables
from codyra_llm.report.folder import RunFolder
from codyra_llm.report.progress import progress_bar
from codyra_llm.report.tracking import Axis, Trackers
from codyra_llm.results.rows import RowScores
from codyra_llm.results.schema import RunResults, TaskRanks
from codyra_llm.results.summary import Scores, summarize
from codyra_llm.text import align

LOG = logging.getLogger(__name__)
STEPS_TO_TIME = 3
CURVES = ("loss", "learning_rate", "threshold", "live_rank", "grad_norm", "penalty")


class Reporter:
    """Reports the progress of a run on rank 0; on other ranks, where `folder` is None, it has no output.

    Args:
        folder: the run folder, which curves are written to.
        config: of the run; its `tracking` names the trackers.
        first_step: optimizer steps of the run before this start; curves of later steps are removed from TensorBoard.
        unit: the unit of the speed.
    """

    def __init__(self, folder: RunFolder | None, config: RunConfig, first_step: int, unit: str = "token") -> None:
        self.folder, self.unit = folder, unit
        self.validation: float | None = None  # last validation loss of this task
        self.timed: list[tuple[int, float]] | None = []
        self.board = (
            SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step + 1 if first_step else None)
            if folder and "tensorboard" in config.tracking
            else None
        )
        self.trackers = Trackers(config, folder.path) if folder else None

    def close(self) -> None:
        """Ends the records of the trackers, whether or not the run finished."""
        if self.trackers:
            self.trackers.close()

    def progress(self, task: str, total: int, done: int) -> Any:
        """Returns the progress bar of a task in training."""
        self.validation = None
        return progress_bar(task, "step", total, done, shown=self.folder is not None)

    def step(self, report: StepReport, global_step: int, progress: Any) -> None:
        """Reports one optimizer step."""
        speed = report.tokens / report.seconds
        self.validation = report.validation or self.validation
        retention: dict[str, float | None] = {f"retention/{k}": value for k, value in report.divergences.items()}
        if retention:
            retention["retention/factor"] = report.retention_factor
        self._curves("step", global_step, {"validation/loss": report.validation, **retention})
        validation = "" if self.validation is None else f", validation {self.validation:.3f}"
        progress.set_postfix_str(
            f"loss {report.loss:.3f}{validation}, lr {report.learning_rate:.1e}, rank {report.live_rank:.1f}, "
            f"{speed:.0f} {self.unit}s/s",
            refresh=False,  # which would write a line in a file at each step
        )
        progress.update()
        curves = {f"train/{name}": getattr(report, name) for name in CURVES}
        self._curves("step", global_step, {**curves, f"train/{self.unit}s_per_second": speed})

    def estimate(self, report: StepReport, tokens: Callable[[], Sequence[float]], task: int, steps: int) -> None:
        """Logs, after a few steps, the remaining training time at their speed.

        Args:
            report: of the last step.
            tokens: returns the number of tokens of each task; it takes a pass over all rows.
            task: number of the task in training.
            steps: number of its steps.
        """
        if not self.folder or self.timed is None:
            return
        self.timed.append((report.tokens, report.seconds))
        if len(self.timed) == STEPS_TO_TIME and report.step + 1 < steps:
            done, seconds = map(sum, zip(*self.timed[1:], strict=True))  # the first one allocates and compiles
            of_tasks = tokens()
            left = of_tasks[task] * (1 - (report.step + 1) / steps) + sum(of_tasks[task + 1 :])
            duration = datetime.timedelta(seconds=round(left * seconds / done))
            LOG.info(f"at this speed, training takes {duration} more, without evaluation")
        if len(self.timed) == STEPS_TO_TIME:
            self.timed = None

    def gates(self, layers: Iterable[tuple[str, CoDyRALinear]], number: int) -> None:
        """Writes the gates of a trained task to TensorBoard, one histogram for each kind of projection."""
        if not self.board:
            return
        gates: dict[str, list[torch.Tensor]] = {}
        for name, layer in layers:
            gates.setdefault(kind_of(name), []).append(layer.gate.detach().float())
        with self._guarded() as board:
            for kind, values in gates.items():
                board.add_histogram(f"gates/{kind}", torch.cat(values), number)

    def ranks(self, ranks: TaskRanks, last_loss: float, number: int) -> None:
        """Reports the ranks that a task kept."""
        LOG.info(
            f"{ranks.task}: kept {ranks.mean:.1f} of {ranks.initial} components, "
            f"update norm {ranks.update_norm:.3f}, last loss {last_loss:.3f}"
        )
        self._curves("task", number, {f"rank/{kind}": rank for kind, rank in ranks.by_projection.items()})

    def scores(self, results: RunResults, stage: Stage) -> None:
        """Reports a row of the matrix."""
        number = stage.number
        of_tasks = zip(results.tasks, results.matrix[number], results.answer_nll[number], strict=True)
        shown = {task: (score, nll) for task, score, nll in of_tasks if score is not None}
        for task, (score, nll) in shown.items():
            self._curves("task", number, {f"score/{task}": score, f"answer_nll/{task}": nll})
        if lost := [task for task, (_, nll) in shown.items() if nll is None]:
            LOG.warning(f"{stage.title}: the loss on the true answers of {', '.join(lost)} is not finite")
        seen = [shown[task][0] for task in results.tasks[:number] if task in shown]
        if seen:  # a mean over tasks that are not learned yet has no meaning
            tasks = "task" if len(seen) == 1 else f"{len(seen)} tasks"
            LOG.info(f"{stage.title}: mean score {sum(seen) / len(seen):.1f} of the {tasks} learned so far")

    def general(self, stage: Stage, delta: float | None) -> None:
        """Reports the change of general ability, if it was measured."""
        if delta is not None:
            LOG.info(f"{stage.title}: general ability {delta:+.2f} against the base model")
            self._curves("task", stage.number, {"general/delta": delta})

    def summary(self, results: RunResults) -> None:
        """Logs the results of a finished run: a few tables and lines, and the paths of results and page."""
        if not self.folder:
            return
        if self.board:
            with self._guarded() as board:
                board.close()
        variant, path = results.config["evaluate"]["scorer_variant"], self.folder.path
        summary = summarize(Scores(results, RowScores(path)))
        head = f"Scores (0 to 100, {variant}; brackets: 95 % intervals over the rows)"
        lines = [tables.general_line(results.general), tables.rank_line(results)]
        lines.append(f"{results.seconds:.0f} s; all results: {path}; every metric: codyra metrics {path}")
        lines.append(f"page: {path / 'report.html'}")
        shown = {head: tables.end_table(summary)}
        shown["As the benchmarks report it"] = align(tables.leading_rows(results))
        shown["Bits per byte of raw text"] = tables.text_table(results)
        shown["Further scorers"] = tables.further_table(results)
        parts = [f"{title}\n{table}" for title, table in shown.items() if table]
        LOG.info("\n\n".join(["", *parts, "\n".join(filter(None, lines))]))

    def _curves(self, axis: Axis, at: int, values: dict[str, float | None]) -> None:
        finite = {name: value for name, value in values.items() if value is not None}  # an NLL may not be
        if self.trackers and finite:
            self.trackers.log(finite, at, axis)
        if not self.board:
            return
        with self._guarded() as board:
            for name, value in finite.items():
                board.add_scalar(name, value, at)

    @contextmanager
    def _guarded(self) -> Iterator[SummaryWriter]:
        """A context with the TensorBoard writer; if it cannot write (full disk), the run continues without it."""
        assert self.board is not None
        try:
            yield self.board
        except OSError as error:
            self.board = None
            LOG.warning(f"no more curves: {error}")
