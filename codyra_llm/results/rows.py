"""The test rows that a run has stored, by stage and task: answers for readers, scores for intervals."""

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
    """A test row with a model's answer.

    Attributes:
        prompt: the prompt.
        prediction: the model's answer.
        reference: the reference answer.
        nll: of the reference answer, in nats per token; None: not finite.
        scores: by variant; empty if no answer was generated, as for raw text.
    """

    prompt: str = ""
    prediction: str = ""
    reference: str = ""
    nll: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


ROW = pydantic.TypeAdapter(Row)


def read_rows(folder: Path, stage: Stage, task: str) -> list[Row] | None:
    """Reads the rows of a task at a stage; None if the run has stored none.

    Raises:
        UserError: the file is damaged, or the task's name is not a plain file name.
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
    """The scores of each row of a run, read from files on demand.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], dict[str, Array] | None] = {}

    def scores(self, stage: Stage, task: str, variant: str, total: float) -> Array | None:
        """Returns scores [rows] whose mean is `total`; None if rows are missing or have a different mean.

        If rows have only an NLL, the total is a function of their mean NLL, and a row's score is its first-order share
        of the total: the scores have the same mean and, by the delta method, the same standard error.
        """
        found = self._read(stage, task)
        if found is None:
            return None
        rows = found[variant] if variant in found else _shares(found["nll"], total)
        agrees = rows is not None and len(rows) > 0 and abs(float(rows.mean()) - total) < 0.01
        return rows if agrees else None

    def losses(self, stage: Stage, task: str) -> Array | None:
        """Returns the NLL of each row's reference answer: [rows]; None if rows are missing or one is not finite."""
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
    """Returns total x (1 - k (nll - mean)) for each row, where the total score in percent is 100 exp(-k mean)."""
    if not np.isfinite(nll).all() or not len(nll) or not 0 < total < 100 or nll.mean() <= 0:
        return None
    mean = float(nll.mean())
    shares: Array = total * (1 + math.log(total / 100) / mean * (nll - mean))
    return shares
