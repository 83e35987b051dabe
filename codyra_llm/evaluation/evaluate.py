"""Scoring one task on a model: answers generated and scored in every variant, and the NLL of the true answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig
from codyra_llm.data.encode import Example
from codyra_llm.data.stream import Task
from codyra_llm.engine.launch import World, gather
from codyra_llm.evaluation.generate import answer_examples
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


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    config: EvaluateConfig,
    world: World,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> TaskScores:
    """Scores a task; the examples (its encoded test rows) are dealt out to the ranks, none dropped.

    Every rank returns the same. The weights must be whole on every rank.
    """
    by_length = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), i))
    mine = by_length[world.rank :: world.size]
    new_tokens, stop = task.spec.max_new_tokens, task.spec.stop
    if config.parity:
        new_tokens, stop = PARITY_NEW_TOKENS, ()
    elif config.max_new_tokens is not None:
        new_tokens = min(new_tokens, config.max_new_tokens)
    answered = answer_examples(
        model, tokenizer, [examples[i] for i in mine], new_tokens, stop, config.batch_size, on_batch
    )
    by_row = {i: answer for share in gather(list(zip(mine, answered, strict=True))) for i, answer in share}
    rows: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "prediction": by_row[i].text, "reference": row["answer"]}
        for i, row in enumerate(task.test)
    ]
    scores = score_rows(task.spec.scorer, rows)
    for i, row in enumerate(rows):
        row["nll"] = by_row[i].loss / len(examples[i].answer)
        row["scores"] = scores["rows"][i]
    return TaskScores(
        rows,
        scores["totals"],
        nll=sum(answer.loss for answer in by_row.values()) / sum(len(example.answer) for example in examples),
        tokens=sum(answer.tokens for answer in by_row.values()),
    )
