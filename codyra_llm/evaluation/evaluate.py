"""Evaluation of tasks on a model: generated answers, scored in every variant, and the NLL of the reference answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from codyra_llm.config import EvaluateConfig
from codyra_llm.data import raw_text
from codyra_llm.data.stream import Task, TaskSpec
from codyra_llm.evaluation.scorers import VARIANTS, score_rows
from codyra_llm.example import Example
from codyra_llm.generation.generate import Answered, Ask, Question

PARITY_NEW_TOKENS = 512


@dataclass(frozen=True)
class TaskScores:
    """The results of a task's test rows on one model.

    Attributes:
        rows: prompt, prediction, reference, nll (nats per answer token; None: not finite) and scores by variant, in the
            file's order.
        totals: mean score by variant, 0 to 100.
        nll: mean over all answer tokens, in nats.
        tokens: tokens generated, over all ranks.
        further: scorer -> variant -> mean score, for the task's scorers other than the first.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, float]
    nll: float
    tokens: int
    further: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate_tasks(
    tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
) -> list[TaskScores]:
    """Scores tasks, one result for each.

    Args:
        tasks: the tasks, with their test rows.
        examples: the encoded test rows of each task.
        config: the evaluation settings.
        ask: answers questions; called once with those of all tasks, in order.
    """
    questions = [
        _question(task, example, config) for task, rows in zip(tasks, examples, strict=True) for example in rows
    ]
    answers = iter(ask(questions))
    score = _score_likelihood if config.scores == "nll" else _score
    return [score(task, rows, [next(answers) for _ in rows]) for task, rows in zip(tasks, examples, strict=True)]


def _question(task: Task, example: Example, config: EvaluateConfig) -> Question:
    longest = new_tokens(task.spec, config)
    return Question(example, longest, () if config.parity or not longest else task.spec.stop)


def new_tokens(spec: TaskSpec, config: EvaluateConfig) -> int:
    """Returns the largest number of tokens that are generated for a test row of a task; 0 if none are needed."""
    if spec.is_text or config.scores == "nll":
        return 0
    if config.parity:
        return PARITY_NEW_TOKENS
    return min(spec.max_new_tokens, config.max_new_tokens or spec.max_new_tokens)


def _score(task: Task, examples: Sequence[Example], answers: Sequence[Answered]) -> TaskScores:
    if task.spec.is_text:
        return _score_text(task, examples, answers)
    rows: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "prediction": answer.text, "reference": row["answer"]}
        | ({"references": row["references"]} if "references" in row else {})
        for row, answer in zip(task.test, answers, strict=True)
    ]
    headline, *others = task.spec.scorers
    scores = score_rows(headline, rows)
    further = {name: score_rows(name, rows) for name in others}
    for row, answer, example, of_row in zip(rows, answers, examples, scores["rows"], strict=True):
        row["nll"] = answer.loss / len(example.answer) if math.isfinite(answer.loss) else None
        row["scores"] = of_row
    for name, found in further.items():
        for row, of_row in zip(rows, found["rows"], strict=True):
            row.setdefault("further_scores", {})[name] = of_row
    return TaskScores(
        rows,
        scores["totals"],
        nll=sum(answer.loss for answer in answers) / sum(len(example.answer) for example in examples),
        tokens=sum(answer.tokens for answer in answers),
        further={name: found["totals"] for name, found in further.items()},
    )


def _score_likelihood(task: Task, examples: Sequence[Example], losses: Sequence[Answered]) -> TaskScores:
    """Scores 100 exp(-NLL per token) of the reference answers in every variant; raw text as `_score_text` does."""
    if task.spec.is_text:
        return _score_text(task, examples, losses)
    nll = sum(each.loss for each in losses) / sum(len(example.answer) for example in examples)
    rows = [
        {
            "prompt": row["prompt"],
            "reference": row["answer"],
            "nll": each.loss / len(example.answer) if math.isfinite(each.loss) else None,
        }
        for row, example, each in zip(task.test, examples, losses, strict=True)
    ]
    score = 100 * math.exp(-nll) if math.isfinite(nll) else 0.0
    return TaskScores(rows, dict.fromkeys(VARIANTS, score), nll, tokens=0)


def _score_text(task: Task, windows: Sequence[Example], losses: Sequence[Answered]) -> TaskScores:
    """Scores the bits per byte of all documents together, the same in every variant; returns a row per window."""
    nats = sum(each.loss for each in losses)
    score = raw_text.as_percent(raw_text.bits_per_byte(nats, (row["answer"] for row in task.test)))
    rows = [
        {"tokens": len(window.answer), "nll": each.loss / len(window.answer) if math.isfinite(each.loss) else None}
        for window, each in zip(windows, losses, strict=True)
    ]
    tokens = sum(len(window.answer) for window in windows)
    return TaskScores(rows, dict.fromkeys(VARIANTS, score), nll=nats / tokens, tokens=0)
