"""The measures of a finished run for a comparison, and the losses of each test row when learned and at the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.files import read_jsonl
from codyra_llm.results.schema import RunResults

# name -> heading
MEASURES: dict[str, str] = {
    "OP": "OP",
    "BWT": "BWT",
    "forgetting_clipped_over_T": "forgetting (clipped, over T)",
    "forgetting_chaudhry_max_from_own_task": "forgetting (Chaudhry)",
    "FWT": "FWT",
    "transfer": "Transfer",
    "average": "Average",
    "last": "Last",
    "general": "general ability, change in %",
    "nll_learned": "NLL learned",
    "nll_forgotten": "NLL forgotten",
    "nll_final": "NLL at the end",
    "routing": "rows routed to their own task, %",
    "text_bits": "bits per byte of general text, change",
    "rank": "rank kept",
    "update_norm": "norm of an update",
    "bound": "the paper's bound on that norm",
    "drift": "norm of all updates",
    "kl_own": "KL to the model before, on the task",
    "kl_earlier": "KL to the model before, on earlier tasks",
    "kl_text": "KL to the model before, on general text",
    "trainable": "trainable values",
    "bytes_kept": "bytes kept",
    "tokens": "tokens trained on",
    "flops": "training FLOPs",
    "seconds": "seconds",
    "memory": "peak memory, GB",
}


@dataclass(frozen=True)
class RowLosses:
    """The mean NLL of the answer tokens of each test row of a task, in nats: [rows].

    Attributes:
        learned: right after the task was learned.
        last: after the last task.
    """

    learned: NDArray[np.float64]
    last: NDArray[np.float64]


def measures(results: RunResults, folder: Path) -> dict[str, float | None]:
    """Returns the values of `MEASURES`; None for those that were not measured or that the domain does not report.

    Training FLOPs are 2 per weight and token in the forward pass and 2 in the backward pass (only the gradient of
    inputs, as weights are frozen), times the method's relative cost.
    """
    variant = results.config["evaluate"]["scorer_variant"]
    of_matrix, facts = results.metrics[variant], results.data.facts
    nll = np.array(results.answer_nll, dtype=float)  # None becomes NaN
    own, last = np.diag(nll[1:]), nll[-1]
    trained = sum(phase.tokens for phase in results.phases if phase.phase == "train")
    found: dict[str, float | None] = {
        "nll_learned": _number(own.mean()),
        "nll_forgotten": _number((last - own)[:-1].mean()) if len(own) > 1 else None,
        "nll_final": _number(last.mean()),
        "general": results.general.delta.get(results.stages[-1].name),
        "routing": _mean([accuracies[-1] for accuracies in results.routing.values()]),
        "text_bits": _text_bits(results),
        "rank": results.mean_rank,
        "update_norm": _mean([of_task.update_norm for of_task in results.ranks]),
        "bound": _mean([of_task.bound for of_task in results.ranks]),
        "kl_own": _mean([of_task.own for of_task in results.divergence]),
        "kl_earlier": _mean([of_task.earlier for of_task in results.divergence]),
        "kl_text": _mean([of_task.text for of_task in results.divergence]),
        "drift": results.ranks[-1].cumulative_norm if results.ranks else None,
        "trainable": results.trainable_parameters,
        "bytes_kept": sum(_size(folder / name) for name in ("ledger", "kept")),
        "tokens": trained,
        "flops": 4 * results.model.parameters * trained * results.relative_cost if facts.unit == "token" else None,
        "seconds": results.seconds,
        "memory": results.peak_memory_bytes / 1e9,
    }
    unreported = {"transfer", "average", "last"} - set(facts.leading)
    for name in MEASURES.keys() - found.keys():
        value = None if name in unreported else of_matrix.get(name)
        found[name] = value if isinstance(value, float | int) else None
    return {name: found[name] for name in MEASURES}


def row_losses(results: RunResults, folder: Path) -> list[RowLosses]:
    """Reads the losses of the test rows of each task from the predictions of a run.

    Raises:
        UserError: a file of predictions is missing or damaged.
    """
    stages = results.stages
    found = []
    for number, task in enumerate(results.tasks, 1):
        found.append(RowLosses(*(_losses(folder, stages[at].name, task) for at in (number, len(results.tasks)))))
    return found


def base_losses(results: RunResults, folder: Path) -> list[RowLosses]:
    """Reads the losses of the base model, as those of a method of strength zero: nothing learned, nothing forgotten."""
    found = (_losses(folder, results.stages[0].name, task) for task in results.tasks)
    return [RowLosses(losses, losses) for losses in found]


def _losses(folder: Path, stage: str, task: str) -> NDArray[np.float64]:
    path = folder / "predictions" / f"{stage}.{task}.jsonl"
    rows = [row for _, row in read_jsonl(path, "restore the run's folder")]
    if not all(isinstance(row, dict) and "nll" in row for row in rows):
        raise UserError(f"{path}: a row has no nll; restore the run's folder")
    return np.array([row["nll"] for row in rows], dtype=float)


def _text_bits(results: RunResults) -> float | None:
    """Returns the mean increase of the suites that are measured in bits per byte."""
    first, last = (results.general.scores.get(results.stages[at].name, {}) for at in (0, -1))
    changes = [
        last[name].score - score.score  # type: ignore[union-attr]
        for name, score in first.items()
        if isinstance(score, SuiteScore) and isinstance(last.get(name), SuiteScore) and score.unit == "bits_per_byte"
    ]
    return _mean(changes)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
