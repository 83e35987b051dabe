"""The tables of a run's page: cells are text, and a reader can sort and download them."""

from collections.abc import Sequence
from dataclasses import dataclass

from codyra_llm.report.page.answers import WrongForms
from codyra_llm.report.page.render import NOTHING, interval, number
from codyra_llm.report.tables import leading_rows
from codyra_llm.results.schema import Phase, RunResults
from codyra_llm.results.summary import SuiteSummary, Summary


@dataclass(frozen=True)
class DataTable:
    """A table with a name, headings, and rows whose first cell is their label."""

    name: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def of_tasks(summary: Summary) -> DataTable:
    """Returns the scores of each task."""
    rows = [
        [each.task, *map(interval, (each.base, each.learned, each.now, each.gained, each.lost)), str(each.rows)]
        for each in summary.tasks
    ]
    heads = ("task", "base", "just learned", "now", "gained by learning", "lost since", "rows")
    return DataTable("Scores by task, with 95 % intervals", heads, rows)


def of_suites(suites: Sequence[SuiteSummary]) -> DataTable:
    """Returns the scores of each suite of general ability."""
    rows = [
        [each.suite, each.unit, number(each.base, 2), number(each.now, 2), interval(each.change, True), str(each.items)]
        for each in suites
    ]
    name = "General ability: change from the base model, with 95 % intervals from standard errors"
    return DataTable(name, ("suite", "unit", "base", "now", "change", "items"), rows)


def of_leading(results: RunResults) -> DataTable:
    """Returns the metrics that the domain's benchmarks report, in every scoring variant; no rows if there are none."""
    heads, *rows = leading_rows(results) or [[]]
    return DataTable("As the benchmarks report it", ["scores", *heads[1:]], rows)


def of_further(results: RunResults) -> DataTable:
    """Returns the scores by the further scorers of tasks that have several."""
    rows = [
        [f"{task}, {scorer}", *map(number, values)]
        for task, found in results.further.items()
        for scorer, values in found.items()
    ]
    return DataTable("Further scorers", ["task, scorer", *(stage.title for stage in results.stages)], rows)


def of_ranks(results: RunResults, summary: Summary) -> DataTable:
    """Returns rank, norms and divergence of each update, with the loss of score of its task."""
    lost = {each.task: each.lost for each in summary.tasks}
    divergence = {each.task: each for each in results.divergence}
    rows = []
    for each in results.ranks:
        moved = divergence.get(each.task)
        norms = (each.update_norm, each.cumulative_norm, each.bound)
        kl = (moved.own, moved.earlier) if moved else (None, None)
        rows.append(
            [
                each.task,
                number(each.mean),
                *(number(value, 3) for value in (*norms, *kl)),
                interval(lost.get(each.task)),
            ]
        )
    heads = ("task", "kept rank", "update norm", "norm of all so far", "bound on the update norm", "KL on its rows",
             "KL on earlier tasks", "lost since")  # fmt: skip
    return DataTable("Size of each update, beside what was lost of its task", *_measured(heads, rows))


def _measured(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of the columns in which anything was measured."""
    columns = [place for place in range(len(heads)) if any(row[place] != NOTHING for row in rows)]
    return [heads[place] for place in columns], [[row[place] for place in columns] for row in rows]


def of_wrong(wrong: Sequence[WrongForms]) -> DataTable:
    """Returns the counts and the most frequent forms of wrong answers."""
    rows = [
        [
            *(each.task, str(each.rows), str(each.wrong), str(each.empty), str(each.foreign)),
            "; ".join(f"{count} × {text}" for text, count in each.frequent),
        ]
        for each in wrong
    ]
    heads = ("task", "rows", "score 0", "empty", "a true answer of another task", "most often")
    return DataTable("Answers that score 0 now", heads, rows)


def of_phases(phases: Sequence[Phase], unit: str = "token") -> DataTable:
    """Returns the cost of all phases of the same name, in the order of their first one; `unit`: what they count."""
    rows = []
    for name in dict.fromkeys(phase.phase for phase in phases):
        same = [phase for phase in phases if phase.phase == name]
        memory = max((phase.resident_bytes for phase in same if phase.resident_bytes), default=None)
        seconds, tokens = sum(phase.seconds for phase in same), sum(phase.tokens for phase in same)
        rows.append([name, number(seconds, 0), number(tokens, 0), number(memory / 1e9 if memory else None, 2)])
    return DataTable("By phase", ("phase", "seconds", f"{unit}s", "memory, GB"), rows)


def of_data(results: RunResults) -> DataTable:
    """Returns rows and hashes of the data."""
    rows = [
        [task.task, file, *map(str, (task.train_rows, task.test_rows, task.steps)), digest]
        for task in results.data.tasks
        for file, digest in task.sha256.items()
    ]
    return DataTable("Data", ("task", "file", "rows to learn", "rows to score", "steps", "SHA-256"), rows)
