"""Scoring one task on a model: answers generated and scored in every variant, and the NLL of the true answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig
from codyra_llm.data.batches import collate
from codyra_llm.data.encode import Example
from codyra_llm.data.stream import Task
from codyra_llm.engine.launch import World, gather
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.evaluation.generate import generate_answers
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
        seconds: of wall time, scoring included.
    """

    rows: list[dict[str, Any]]
    totals: dict[str, float]
    nll: float
    tokens: int
    seconds: float


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
    began = time.perf_counter()
    by_length = sorted(range(len(examples)), key=lambda i: (-len(examples[i].prompt), i))
    mine = by_length[world.rank :: world.size]
    new_tokens, stop = task.spec.max_new_tokens, task.spec.stop
    if config.parity:
        new_tokens, stop = PARITY_NEW_TOKENS, ()
    elif config.max_new_tokens is not None:
        new_tokens = min(new_tokens, config.max_new_tokens)
    answers, generated = generate_answers(
        model, tokenizer, [examples[i].prompt for i in mine], new_tokens, stop, config.batch_size, on_batch
    )
    losses = answer_losses(model, [examples[i] for i in mine], config.batch_size)
    shares = gather((mine, answers, losses, generated))
    predictions = {i: (answer, loss) for rows, texts, sums, _ in shares for i, answer, loss in zip(rows, texts, sums)}  # noqa: B905
    rows: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "prediction": predictions[i][0], "reference": row["answer"]}
        for i, row in enumerate(task.test)
    ]
    scores = score_rows(task.spec.scorer, rows)
    for i, row in enumerate(rows):
        row["nll"] = predictions[i][1] / len(examples[i].answer)
        row["scores"] = scores["rows"][i]
    return TaskScores(
        rows,
        scores["totals"],
        nll=sum(loss for _, loss in predictions.values()) / sum(len(example.answer) for example in examples),
        tokens=sum(share[3] for share in shares),
        seconds=time.perf_counter() - began,
    )


@torch.inference_mode()
def answer_losses(model: PreTrainedModel, examples: Sequence[Example], batch_size: int) -> list[float]:
    """Summed NLL in nats of each example's answer, in their order."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    loss, result = AnswerLoss(model), [0.0] * len(examples)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = collate([examples[i] for i in rows], pad_token_id=0)
        tokens = loss.token_losses(batch.input_ids.to(model.device), batch.labels.to(model.device))
        parts = tokens.double().split([len(examples[i].answer) for i in rows])
        for i, part in zip(rows, parts, strict=True):
            result[i] = float(part.sum())
    return result
