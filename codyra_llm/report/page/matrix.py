"""The matrix as tables of colored cells: numbers are scores, colors the change since the task was just learned."""

from collections.abc import Iterator
from dataclasses import dataclass

from codyra_llm.evaluation.matrix import Stage
from codyra_llm.report.page.render import interval, number
from codyra_llm.report.pictures import Run
from codyra_llm.results import intervals
from codyra_llm.results.comparison import Estimate

DARKEST = 0.6  # largest share of the color, so that text on it can be read in both themes
WHOLE_SCORE, WHOLE_NLL = 50.0, 2.0  # changes that get the largest share
MOST_TASKS = 20  # for tables in every variant; with more tasks a page would take megabytes


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: of the cell.
        said: details, shown on demand.
        kind: "better", "worse", "same", or empty if there is no change to show.
        shade: strength of the color, 0 to 1.
        framed: whether the task was just learned.
    """

    text: str
    said: str
    kind: str = ""
    shade: float = 0.0
    framed: bool = False


@dataclass(frozen=True)
class Table:
    """The cells of one scoring variant, with a row for each stage."""

    name: str
    rows: list[tuple[str, list[Cell]]]


def tables(run: Run) -> list[Table]:
    """Returns a table for the run's scoring variant, one for each variant that differs, and one for NLL."""
    results = run.results
    chosen = results.config["evaluate"]["scorer_variant"]
    names: dict[str, list[str]] = {}  # matrix as text -> variants that have it
    many = len(results.tasks) > MOST_TASKS
    for variant, matrix in results.matrices.items():
        if variant == chosen or not many:
            names.setdefault(repr(matrix), []).append(variant)
    ordered = sorted(names.values(), key=lambda same: chosen not in same)
    found = [Table(f"score, {', '.join(same)}", list(_rows(run, same[0]))) for same in ordered]
    if any(nll is not None for row in results.answer_nll for nll in row):
        found.append(Table("NLL of the true answers (lower is better)", list(_rows(run, None))))
    return found


def _rows(run: Run, variant: str | None) -> Iterator[tuple[str, list[Cell]]]:
    for stage in run.results.stages:
        make = _score_cell if variant else _nll_cell
        yield stage.title, [make(run, stage, task, variant) for task in range(len(run.results.tasks))]


def _score_cell(run: Run, stage: Stage, task: int, variant: str | None) -> Cell:
    results = run.results
    found, own = run.scores.at(stage, task, variant), results.stages[task + 1]
    if found is None:
        return Cell("–", f"{results.tasks[task]}, {stage.title}: not measured", framed=stage == own)
    said = f"{results.tasks[task]}, {stage.title}: {interval(found)}, {results.data.tasks[task].test_rows} rows"
    change = run.scores.change(own, stage, task, variant) if stage.number > own.number else None
    kind, shade, more = _colored(change, WHOLE_SCORE)
    return Cell(number(found.value, 0), said + more, kind, shade, stage == own)


def _nll_cell(run: Run, stage: Stage, task: int, variant: str | None) -> Cell:
    results = run.results
    nll, own = results.answer_nll[stage.number][task], results.stages[task + 1]
    if nll is None:
        return Cell("–", f"{results.tasks[task]}, {stage.title}: not measured, or not finite", framed=stage == own)
    said = f"{results.tasks[task]}, {stage.title}: NLL {number(nll, 3)}, {results.data.tasks[task].test_rows} rows"
    change = run.scores.nll_change(own, stage, task) if stage.number > own.number else None
    kind, shade, _ = _colored(intervals.negative(change), WHOLE_NLL)
    if change:
        said += f"; change since learned {number(change.value, 3)} [{number(change.low, 3)}, {number(change.high, 3)}]"
    return Cell(number(nll, 2), said, kind, shade, stage == own)


def _colored(change: Estimate | None, whole: float) -> tuple[str, float, str]:
    """Returns kind and shade of a change (higher is better), and a text about it."""
    if change is None:
        return "", 0.0, ""
    shade = round(DARKEST * min(1.0, abs(change.value) / whole), 2)
    kind = "better" if change.value > 0 else "worse" if change.value < 0 else "same"
    return kind, shade, f"; change since learned {interval(change, True)}"
