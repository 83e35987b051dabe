"""The accuracy matrix and its metrics.

R is (T+1) x T, in percent: R[0] is the untouched model, R[t] the model after task t = 1..T, column i is task i = 1..T
(`matrix[t, i - 1]` in code). A cell that was not measured is NaN; a metric that needs one is None, and so is a metric
over T-1 tasks when T = 1. Definitions differ between papers, hence one name per convention.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codyra_llm.errors import UserError

Matrix = NDArray[np.float64]
MatrixLike = ArrayLike | Sequence[Sequence[float | None]]
Metric = float | list[float | None] | None

# Headings of a first column with labels; a column that contains only text is also read as labels.
LABEL_HEADERS = {"", "after", "model", "row", "round", "stage", "step", "task", "trained on"}


@dataclass(frozen=True)
class Stage:
    """A row of the matrix: the model after `number` tasks, the last of which is `task`.

    Attributes:
        number: 0 for the base model, t after task t.
        task: name of the last task; "base" if `number` is 0.
    """

    number: int
    task: str

    @property
    def name(self) -> str:
        """The row's name in files and in results.json: "0-base", "1-FOMC"."""
        return f"{self.number}-{self.task}"

    @property
    def title(self) -> str:
        """The row's name in tables, plots and logs: "base model", "after FOMC"."""
        return f"after {self.task}" if self.number else "base model"


def stages_of(tasks: Sequence[str]) -> list[Stage]:
    """Returns the rows of the matrix of a stream of tasks: the base model, then one after each task."""
    return [Stage(0, "base"), *(Stage(number, task) for number, task in enumerate(tasks, 1))]


@dataclass(frozen=True)
class Definition:
    """The definition of a metric of the matrix: its formula in R and T, and whether higher is better."""

    formula: str
    higher_is_better: bool = True


DEFINITIONS = {
    "OP": Definition("mean_i R[T,i]; TRACE's overall performance, GEM's ACC"),
    "OP_per_step": Definition("for t = 1..T, mean over i <= t of R[t,i]"),
    "OP_mean_over_steps": Definition("mean of OP_per_step; FGGM's TRACE-OP"),
    "mean_of_lower_triangle_entries": Definition("mean of R[t,i] over i <= t; All Average of TreeLoRA and MoRAM"),
    "learning_accuracy_mean_diagonal": Definition("mean_i R[i,i], what was learned before it could be forgotten"),
    "BWT": Definition("mean over i < T of R[T,i] - R[i,i]; GEM and TRACE; negative is forgetting"),
    "BWT_over_T": Definition("the same sum divided by T; SEEKR"),
    "BWT_clipped_over_T": Definition("mean over i <= T of min(R[T,i] - R[i,i], 0); BWT of TreeLoRA and MoRAM"),
    "forgetting_clipped_over_T": Definition("its negative; Forgetting of TreeLoRA and MoRAM", False),
    "forgetting_chaudhry_max_from_own_task": Definition(
        "mean over i < T of max over i <= l < T of R[l,i], minus R[T,i]", False
    ),
    "forgetting_chaudhry_max_over_all_earlier_rows": Definition(
        "the same with the maximum over 1 <= l < T; Chaudhry et al.", False
    ),
    "forgetting_max_over_all_rows_including_last": Definition(
        "the same over 1 <= l <= T, so never negative; mammoth", False
    ),
    "transfer_per_task_from_second": Definition(
        "for i = 2..T, mean over 1 <= l < i of R[l,i]; the base does not count"
    ),
    "transfer": Definition("mean of those; MTIL and X-TAIL"),
    "average_per_task": Definition("for i = 1..T, mean over l = 1..T of R[l,i]"),
    "average": Definition("mean of those; MTIL and X-TAIL"),
    "last": Definition("OP under the name that MTIL and X-TAIL give it"),
    "FWT": Definition("mean over i >= 2 of R[i-1,i] - R[0,i]; GEM, with the untouched model as baseline"),
}


def matrix_metrics(matrix: MatrixLike) -> dict[str, Metric]:
    """Computes every metric of an accuracy matrix, in the unit of its entries.

    Args:
        matrix: (T+1, T), row 0 the untouched model; NaN or None where not measured.

    Returns:
        name -> value, for the names of `DEFINITIONS`.
    """
    r = np.asarray(matrix, dtype=np.float64)
    if r.ndim != 2 or r.shape[1] < 1 or r.shape[0] != r.shape[1] + 1:
        raise UserError(
            f"an accuracy matrix has one row more than it has columns (row 0 is the untouched model); got {r.shape}"
        )
    tasks = r.shape[1]
    after = r[1:]
    diagonal, final = np.diag(after), after[-1]
    change = final - diagonal
    op_per_step = [float(after[t, : t + 1].mean()) for t in range(tasks)]
    transfer = [float(after[:i, i].mean()) for i in range(1, tasks)]

    def forgetting(best: Callable[[int], np.floating]) -> float | None:
        return _mean([best(i) - final[i] for i in range(tasks - 1)])

    return {
        "OP": _mean(final),
        "OP_per_step": _optional(op_per_step),
        "OP_mean_over_steps": _mean(op_per_step),
        "mean_of_lower_triangle_entries": _mean(after[np.tril_indices(tasks)]),
        "learning_accuracy_mean_diagonal": _mean(diagonal),
        "BWT": _mean(change[:-1]),
        "BWT_over_T": _mean(change),
        "BWT_clipped_over_T": _mean(np.minimum(change, 0)),
        "forgetting_clipped_over_T": _mean(np.maximum(-change, 0)),
        "forgetting_chaudhry_max_from_own_task": forgetting(lambda i: after[i:-1, i].max()),
        "forgetting_chaudhry_max_over_all_earlier_rows": forgetting(lambda i: after[:-1, i].max()),
        "forgetting_max_over_all_rows_including_last": forgetting(lambda i: after[:, i].max()),
        "transfer_per_task_from_second": _optional(transfer),
        "transfer": _mean(transfer),
        "average_per_task": _optional(after.mean(axis=0).tolist()),
        "average": _mean(after.mean(axis=0)),
        "last": _mean(final),
        "FWT": _mean(np.diag(after, k=1) - r[0, 1:]),
    }


def _mean(values: ArrayLike) -> float | None:
    """Returns the mean; None if there are no entries or one was not measured."""
    entries = np.asarray(values, dtype=np.float64)
    if not entries.size or not np.isfinite(entries).all():
        return None
    return float(entries.mean())


def _optional(values: Sequence[float]) -> list[float | None] | None:
    """Returns the values with None for NaN; None for an empty list."""
    return [value if math.isfinite(value) else None for value in values] or None


def write_matrix_csv(path: str | Path, task_names: Sequence[str], matrix: MatrixLike) -> None:
    """Writes an accuracy matrix with a label column; a cell that was not measured stays empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *task_names])
        for stage, row in zip(stages_of(task_names), np.asarray(matrix, dtype=np.float64), strict=True):
            writer.writerow([stage.title, *("" if math.isnan(value) else repr(float(value)) for value in row)])


def read_matrix_csv(path: str | Path) -> tuple[list[str], Matrix]:
    """Reads an accuracy matrix: a header of task names, then the rows base model, after task 1, ..., after task T.

    A first column of labels ("base model", "after FOMC", ...) is optional; an empty cell was not measured.

    Returns:
        The task names and the (T+1, T) matrix, NaN where not measured.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    if len(lines) < 2:
        raise UserError(f"{path}: no accuracy matrix in it; give a header of task names and T+1 rows of T numbers")
    (header_line, header), *rows = lines
    short_header = all(len(row) == len(header) + 1 for _, row in rows)
    labelled = short_header or _has_labels(header[0], [row[0] for _, row in rows])
    names = header if short_header else header[labelled:]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path} line {header_line}: task names must be given and differ; found {names}")
    if len(rows) != len(names) + 1:
        raise UserError(
            f"{path}: {len(rows)} rows for {len(names)} tasks; there must be {len(names) + 1}, "
            "the untouched model first, then one after each task"
        )
    return names, np.array([_numbers(path, line, row[labelled:], len(names)) for line, row in rows])


def _has_labels(heading: str, column: list[str]) -> bool:
    """True if a first column contains labels: its heading is empty or a known one, or it contains only text."""
    return heading.casefold() in LABEL_HEADERS or all(cell and _number(cell) is None for cell in column)


def _number(cell: str) -> float | None:
    """Returns a cell's finite number, NaN if it is empty, None for anything else."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return None if math.isinf(value) else value


def _numbers(path: str | Path, line: int, cells: list[str], expected: int) -> list[float]:
    if len(cells) != expected:
        raise UserError(f"{path} line {line}: {len(cells)} values for {expected} tasks")
    values = [_number(cell) for cell in cells]
    for cell, value in zip(cells, values, strict=True):
        if value is None:
            raise UserError(f"{path} line {line}: {cell!r} is not a number (leave a cell empty if it was not measured)")
    return [value for value in values if value is not None]
