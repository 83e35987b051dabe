"""The score of a model on a suite, from the metrics of lm-evaluation-harness, with all answers."""

import contextlib
import io
import json
import math
import statistics
from typing import Any, NamedTuple

from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from codyra_llm.errors import RankFailed, Stopped, UserError
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.evaluation.general.suites import Suite, line_of
from codyra_llm.evaluation.general.trust import SEED, seeded

OUT_OF_100 = {"bleu", "chrf", "ter"}  # metrics that the harness returns in percent


class _OfTask(NamedTuple):
    """A task's first metric, for its first filter.

    Attributes:
        values: of its items, if the metric is their mean; otherwise None.
        stderr: the harness's standard error; None if it has none.
    """

    metric: str
    unit: str
    higher_is_better: bool
    value: float
    stderr: float | None
    values: list[float] | None
    rows: list[dict[str, Any]]


def score_suite(suite: Suite, lm: LM, in_turns: bool = False) -> tuple[SuiteScore | SuiteFailure, list[dict[str, Any]]]:
    """Scores a model on a suite.

    Args:
        suite: the suite.
        lm: the model.
        in_turns: whether prompts use the model's chat template, with few-shot examples as separate turns.

    Returns:
        The score, or the reason why there is none; and every answer:
        {"task", "item", "prompt_sha256", "answers", "filtered", "target", "score"}.

    Raises:
        Stopped: the run was asked to stop.
        UserError: an answer could not be stored.
        RankFailed: the model failed on one rank, and the others wait for it.
    """
    tasks = {name: suite.tasks[name] for name in suite.items}  # the harness would ask all items of tasks without any
    try:
        for task in tasks.values():
            task.set_fewshot_seed(SEED)
        with seeded(), contextlib.redirect_stderr(io.StringIO()):  # the harness shows a progress bar for each task
            found: Any = evaluate(
                lm,
                {"tasks": tasks, "groups": {}, "group_map": {}},
                samples=suite.items,
                bootstrap_iters=100,
                apply_chat_template=in_turns,
                fewshot_as_multiturn=in_turns,
            )
        parts = [_of_task(task, found["results"][name], found["samples"][name]) for name, task in tasks.items()]
        rows = [{"task": name, **row} for name, part in zip(tasks, parts, strict=True) for row in part.rows]
        return _together(parts), rows
    except (Stopped, UserError, RankFailed):
        raise
    except (Exception, SystemExit) as error:  # a suite is third-party code and data: its failure must not end a run
        return SuiteFailure(line_of(error)), []


def _of_task(task: Task, results: dict[str, Any], samples: list[dict[str, Any]]) -> _OfTask:
    key = next(key for key in results if "," in key and "_stderr" not in key)
    metric, _, chain = key.partition(",")
    rows = [_row(sample, metric) for sample in samples if sample["filter"] == chain]
    higher = bool(task.higher_is_better().get(metric, True))
    scale = 100.0 if higher and metric not in OUT_OF_100 else 1.0
    error = results.get(f"{metric}_stderr,{chain}")
    values = [scale * row["score"] for row in rows if isinstance(row["score"], int | float)]
    return _OfTask(
        metric,
        "percent" if higher else metric,
        higher,
        scale * float(results[key]),
        scale * error if isinstance(error, float) and math.isfinite(error) else None,
        values if task.aggregation().get(metric) is mean else None,
        rows,
    )


def _together(parts: list[_OfTask]) -> SuiteScore:
    """Returns the mean over all items with the standard error of a simple sample; strata could only decrease it."""
    units = {part.unit for part in parts}
    if len(units) > 1:
        raise ValueError(f"its tasks are measured in {' and '.join(sorted(units))}; name them as suites of their own")
    counts = [len(part.rows) for part in parts]
    values = [value for part in parts for value in part.values or ()]
    error: float | None = None
    if len(values) == sum(counts) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
    elif all(part.stderr is not None for part in parts):
        error = sum((n * (part.stderr or 0.0)) ** 2 for n, part in zip(counts, parts, strict=True)) ** 0.5 / sum(counts)
    score = sum(n * part.value for n, part in zip(counts, parts, strict=True)) / sum(counts)
    if not math.isfinite(score):
        raise ValueError(f"its score is {score}")
    return SuiteScore(
        score=score,
        stderr=error,
        unit=parts[0].unit,
        higher_is_better=parts[0].higher_is_better,
        metric=", ".join(sorted({part.metric for part in parts})),
        items=sum(counts),
    )


def _row(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    answers = {
        "item": sample["doc_id"],
        "prompt_sha256": sample["prompt_hash"],
        "answers": [tried[0] for tried in sample["resps"]],
        "filtered": sample["filtered_resps"],
        "target": sample["target"],
        "score": sample.get(metric),
    }
    if answers["filtered"] == answers["answers"]:
        del answers["filtered"]
    plain: dict[str, Any] = json.loads(json.dumps(answers, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
