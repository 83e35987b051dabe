"""Scoring tasks on a model: answers generated and scored in every variant, and the NLL of the true answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig
from codyra_llm.data.encode import Example
from codyra_llm.data.stream import Task
from codyra_llm.engine.launch import World, gather
from codyra_llm.evaluation.generate import Answered, Question, answer_questions
from codyra_llm.evaluation.scorers import score_rows

PARITY_NEW_TOKENS = 512


@dataclass(frozen=True)
class TaskScores:
    """A task's test rows on one model.

    Attributes:
        rows: prompt, prediction, reference, nll (nats per answer token) and scores by variant, in the file's order.
        totals: mean score by variant, 0 to 100.
        nll: mean over all answer tokens, in nats.
        tokens: tokens generated, over all ranks.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, float]
    nll: float
    tokens: int


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    examples: Sequence[Sequence[Example]],
    config: EvaluateConfig,
    world: World,
    on_batch: Callable[[int], None] = lambda rows: None,
    synced: bool = False,
) -> list[TaskScores]:
    """Scores tasks; `examples` are their encoded test rows, dealt out to the ranks, none dropped.

    Every rank returns the same. The weights must be readable; `synced` says that this takes all ranks in step.
    """
    questions = [
        _question(task, example, config) for task, rows in zip(tasks, examples, strict=True) for example in rows
    ]
    # like by like, so that each rank gets its share of the long ones
    order = sorted(range(len(questions)), key=lambda i: (questions[i].max_new_tokens, len(questions[i].example)))
    mine = order[world.rank :: world.size]
    if synced and len(mine) < len(order[:: world.size]):
        mine = [*mine, order[0]]  # answered twice, so that all ranks run as many batches
    answered = answer_questions(model, tokenizer, [questions[i] for i in mine], config.batch_size, on_batch, synced)
    by_question = {i: answer for share in gather(list(zip(mine, answered, strict=True))) for i, answer in share}
    answers = iter(by_question[i] for i in range(len(questions)))
    return [_score(task, rows, [next(answers) for _ in rows]) for task, rows in zip(tasks, examples, strict=True)]


def _question(task: Task, example: Example, config: EvaluateConfig) -> Question:
    if config.parity:
        return Question(example, PARITY_NEW_TOKENS)
    longest = min(task.spec.max_new_tokens, config.max_new_tokens or task.spec.max_new_tokens)
    return Question(example, longest, task.spec.stop)


def _score(task: Task, examples: Sequence[Example], answers: Sequence[Answered]) -> TaskScores:
    rows: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "prediction": answer.text, "reference": row["answer"]}
        for row, answer in zip(task.test, answers, strict=True)
    ]
    scores = score_rows(task.spec.scorer, rows)
    for row, answer, example, of_row in zip(rows, answers, examples, scores["rows"], strict=True):
        row["nll"] = answer.loss / len(example.answer)
        row["scores"] = of_row
    return TaskScores(
        rows,
        scores["totals"],
        nll=sum(answer.loss for answer in answers) / sum(len(example.answer) for example in examples),
        tokens=sum(answer.tokens for answer in answers),
    )
