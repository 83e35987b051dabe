"""Summary of a run: the scores of each task before learning, just learned and at the end, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.evaluation.matrix import Stage, stages_of
from codyra_llm.results import intervals
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.rows import RowScores
from codyra_llm.results.schema import General, RunResults


@dataclass(frozen=True)
class TaskSummary:
    """The scores of one task, 0 to 100; None: not measured, or not learned yet.

    Attributes:
        task: its name.
        rows: number of test rows.
        is_learned: whether it was learned by the last measured stage.
        base: score of the base model.
        learned: score right after the task.
        now: score at the last measured stage.
        gained: learned minus base, paired by row.
        lost: learned minus now, paired by row, for a task that was followed by others.
    """

    task: str
    rows: int
    is_learned: bool
    base: Estimate | None
    learned: Estimate | None
    now: Estimate | None
    gained: Estimate | None
    lost: Estimate | None


@dataclass(frozen=True)
class Summary:
    """The summary of all tasks. Means are over learned tasks; `lost` does not include the last one of them."""

    tasks: list[TaskSummary]
    now: Stage
    base: Estimate | None
    learned: Estimate | None
    end: Estimate | None
    gained: Estimate | None
    lost: Estimate | None


@dataclass(frozen=True)
class SuiteSummary:
    """The scores on one suite of general ability; intervals are from standard errors, None without these."""

    suite: str
    unit: str
    items: int
    higher_is_better: bool
    base: float
    now: float
    change: Estimate | None


class Scores:
    """Cells of the matrix with intervals: from stored rows if available, otherwise from the number of rows alone."""

    def __init__(self, results: RunResults, rows: RowScores) -> None:
        self.results, self.rows = results, rows

    def at(self, stage: Stage, task: int, variant: str | None = None) -> Estimate | None:
        """Returns a cell; `variant` None: the run's scoring variant."""
        total = self._total(stage, task, variant)
        if total is None:
            return None
        rows = self._rows(stage, task, variant, total)
        if rows is None:
            return intervals.of_counts(total, self.results.data.tasks[task].test_rows)
        return intervals.moved(intervals.of_mean(rows), total)

    def change(self, before: Stage, after: Stage, task: int, variant: str | None = None) -> Estimate | None:
        """Returns the change of a cell from one stage to another, paired by row if rows are stored."""
        totals = [self._total(stage, task, variant) for stage in (before, after)]
        if totals[0] is None or totals[1] is None:
            return None
        first, last = (
            self._rows(stage, task, variant, total)
            for stage, total in zip((before, after), (totals[0], totals[1]), strict=True)
        )
        if first is not None and last is not None and len(first) == len(last):
            return intervals.moved(intervals.of_change(first, last), totals[1] - totals[0])
        cells = [self.at(stage, task, variant) for stage in (before, after)]
        return intervals.of_difference(cells[0], cells[1]) if cells[0] and cells[1] else None

    def nll_change(self, before: Stage, after: Stage, task: int) -> Estimate | None:
        """Returns the change of the reference answers' NLL, with its interval over rows; None without rows."""
        name = self.results.tasks[task]
        totals = [self.results.answer_nll[stage.number][task] for stage in (before, after)]
        first, last = (self.rows.losses(stage, name) for stage in (before, after))
        if totals[0] is None or totals[1] is None or first is None or last is None or len(first) != len(last):
            return None
        error = float((last - first).std(ddof=1)) / len(first) ** 0.5 if len(first) > 1 else None
        return intervals.of_error(totals[1] - totals[0], error)

    def _total(self, stage: Stage, task: int, variant: str | None) -> float | None:
        matrix = self.results.matrices[variant] if variant else self.results.matrix
        return matrix[stage.number][task]

    def _rows(self, stage: Stage, task: int, variant: str | None, total: float) -> intervals.Array | None:
        name = variant or self.results.config["evaluate"]["scorer_variant"]
        return self.rows.scores(stage, self.results.tasks[task], name, total)


def last_measured(results: RunResults) -> Stage:
    """Returns the last stage at which any task was scored; the base model if none was."""
    measured = [stage for stage in results.stages if any(s is not None for s in results.matrix[stage.number])]
    return measured[-1] if measured else results.stages[0]


def summarize(scores: Scores) -> Summary:
    """Returns the summary of a run, finished or not."""
    results = scores.results
    base, now = results.stages[0], last_measured(results)
    tasks = []
    for number, task in enumerate(results.tasks):
        own = results.stages[number + 1]
        is_learned = own.number <= now.number
        change = scores.change(own, now, number) if own.number < now.number else None
        tasks.append(
            TaskSummary(
                task,
                results.data.tasks[number].test_rows,
                is_learned,
                scores.at(base, number),
                scores.at(own, number) if is_learned else None,
                scores.at(now, number),
                scores.change(base, own, number) if is_learned else None,
                intervals.negative(change),
            )
        )
    seen = tasks[: now.number]
    return Summary(
        tasks,
        now,
        base=_mean([each.base for each in seen]),
        learned=_mean([each.learned for each in seen]),
        end=_mean([each.now for each in seen]),
        gained=_mean([each.gained for each in seen]),
        lost=_mean([each.lost for each in seen[: max(0, now.number - 1)]]),
    )


def _mean(found: Sequence[Estimate | None]) -> Estimate | None:
    """Returns the mean; None if a task is missing, as the mean would then be over other tasks."""
    known = [each for each in found if each]
    return intervals.of_mean_over(known) if len(known) == len(found) else None


def general_change(general: General) -> tuple[list[SuiteSummary], Estimate | None]:
    """Returns each suite's scores of the base model and of the last measurement, and the mean change in percent.

    Standard errors are combined as for independent samples, which overestimates the error, as the items are the same.
    """
    *_, (name, latest) = general.scores.items() or [("", {})]
    base = stages_of(())[0].name
    if name == base:
        return [], None
    suites = []
    for suite, first in general.scores.get(base, {}).items():
        last = latest.get(suite)
        if isinstance(first, SuiteScore) and isinstance(last, SuiteScore):
            error = None if first.stderr is None or last.stderr is None else (first.stderr**2 + last.stderr**2) ** 0.5
            change = intervals.of_error(last.score - first.score, error)
            suites.append(
                SuiteSummary(suite, first.unit, last.items, first.higher_is_better, first.score, last.score, change)
            )
    percent = [each.change for each in suites if each.unit == "percent"]
    known = [change for change in percent if change]
    return suites, intervals.of_mean_over(known) if known and len(known) == len(percent) else None
