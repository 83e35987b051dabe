"""The test rows that a run has kept, by stage and task: answers for readers, scores for intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydantic
from numpy.typing import NDArray

from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.files import plain_name, read_text

Array = NDArray[np.float64]


@dataclass
class Row:
    """A test row as a model answered it.

    Attributes:
        nll: nats per token of the true answer; None: not finite.
        scores: by variant; none where nothing was generated, as for raw text.
    """

    prompt: str = ""
    prediction: str = ""
    reference: str = ""
    nll: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


ROW = pydantic.TypeAdapter(Row)


def read_rows(folder: Path, stage: Stage, task: str) -> list[Row] | None:
    """The rows of a task at a stage; None where a run has kept none.

    Raises:
        UserError: the file is damaged, or the task's name would lead out of the folder.
    """
    name = plain_name(f"{stage.name}.{task}.jsonl", f"{folder}/results.json: the task")
    path = folder / "predictions" / name
    if not path.is_file():
        return None
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(ROW.validate_json(line))
            except pydantic.ValidationError as error:
                problem = error.errors(include_url=False, include_input=False)[0]["msg"]
                raise UserError(f"{path} line {number}: {problem}; restore the run's folder") from None
    return rows


class RowScores:
    """The scores of each row of a run, read as they are asked for.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], dict[str, Array] | None] = {}

    def scores(self, stage: Stage, task: str, variant: str, total: float) -> Array | None:
        """Scores [rows] whose mean is `total`; None where rows are missing, or make another mean.

        Where rows have a likelihood alone, the total is a function of their mean, and a row's score is its first-order
        share of that: the mean is the same, and so is the standard error, by the delta method.
        """
        found = self._read(stage, task)
        if found is None:
            return None
        rows = found[variant] if variant in found else _shares(found["nll"], total)
        agrees = rows is not None and len(rows) > 0 and abs(float(rows.mean()) - total) < 0.01
        return rows if agrees else None

    def losses(self, stage: Stage, task: str) -> Array | None:
        """The NLL of the true answer of each row: [rows]; None where rows are missing, or one is not finite."""
        found = self._read(stage, task)
        return found["nll"] if found and np.isfinite(found["nll"]).all() and len(found["nll"]) else None

    def _read(self, stage: Stage, task: str) -> dict[str, Array] | None:
        key = stage.name, task
        if key not in self._known:
            rows = read_rows(self.folder, stage, task)
            self._known[key] = None if rows is None else _columns(rows)
        return self._known[key]


def _columns(rows: Sequence[Row]) -> dict[str, Array]:
    variants = dict.fromkeys(variant for row in rows for variant in row.scores)
    columns = {variant: [row.scores.get(variant, math.nan) for row in rows] for variant in variants}
    columns["nll"] = [math.nan if row.nll is None else row.nll for row in rows]
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def _shares(nll: Array, total: float) -> Array | None:
    """total x (1 - k (nll - mean)), the score being exp(-k mean) in percent."""
    if not np.isfinite(nll).all() or not len(nll) or not 0 < total < 100 or nll.mean() <= 0:
        return None
    mean = float(nll.mean())
    shares: Array = total * (1 + math.log(total / 100) / mean * (nll - mean))
    return shares
