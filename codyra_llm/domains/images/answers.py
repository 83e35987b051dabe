"""CLIP's answers: a picture's most likely class among those of all tasks, and whether it is right within its task."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.data.stream import Task
from codyra_llm.distributed.ranks import Ranks, all_gather
from codyra_llm.domains.facts import UNION, WITHIN_TASK
from codyra_llm.domains.images.rows import ImageExample, Space
from codyra_llm.domains.images.towers import image_features, padded, text_features
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.example import Example
from codyra_llm.generation.generate import Answered, Ask, Question, in_rounds

PROMPTS_AT_ONCE = 128


@torch.inference_mode()
def answer_pictures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int = 16,
    ranks: Ranks | None = None,
    answered: dict[int, Answered] | None = None,
    on_round: Callable[[dict[int, Answered]], None] = lambda fresh: None,
    synced: bool = False,
) -> list[Answered]:
    """Answers the questions; the arguments are those of `answer_questions`. The prompts of all classes are read once.

    In an answer, `text` is the number of the most likely class among all classes, `loss` is the negative
    log-likelihood of the true class among all classes, and `greedy` is True if the true class is the most likely one
    within its task.
    """
    answered = dict(answered or {})
    left = [number for number in range(len(questions)) if number not in answered]
    batches = [left[first : first + batch_size] for first in range(0, len(left), batch_size)]
    texts = _class_features(model, _example(questions[left[0]]).space, ranks, synced) if left else None

    def tell(mine: list[int]) -> list[Answered]:
        return _tell(model, [_example(questions[number]) for number in mine], texts)

    for fresh in in_rounds(batches, tell, ranks, synced):
        answered |= fresh
        on_round(fresh)
    return [answered[number] for number in range(len(questions))]


def score_pictures(tasks: Sequence[Task], examples: Sequence[Sequence[Example]], ask: Ask) -> list[TaskScores]:
    """Computes the accuracy of tasks in both variants, from one pass over their pictures."""
    given = iter(ask([Question(example, 0) for rows in examples for example in rows]))
    return [_score(task, rows, [next(given) for _ in rows]) for task, rows in zip(tasks, examples, strict=True)]


def _score(task: Task, examples: Sequence[Example], answers: Sequence[Answered]) -> TaskScores:
    rows: list[dict[str, Any]] = []
    for row, example, answer in zip(task.test, map(_of, examples), answers, strict=True):
        told = int(answer.text)
        scores = {UNION: 100.0 * (told == example.answer[0]), WITHIN_TASK: 100.0 * answer.greedy}
        rows.append(
            {
                "prompt": row["prompt"],
                "prediction": example.space.told(told, example.own),
                "reference": row["answer"],
                "nll": answer.loss if math.isfinite(answer.loss) else None,
                "scores": scores,
            }
        )
    totals = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in (UNION, WITHIN_TASK)}
    return TaskScores(rows, totals, nll=sum(answer.loss for answer in answers) / len(rows), tokens=len(rows))


def _example(question: Question) -> ImageExample:
    return _of(question.example)


def _of(example: Example) -> ImageExample:
    assert isinstance(example, ImageExample)
    return example


def _class_features(model: PreTrainedModel, space: Space, ranks: Ranks | None, synced: bool) -> torch.Tensor:
    """[classes, d]: the unit features of all prompts, computed in chunks by the ranks; the same on every rank."""
    chunks = range(0, len(space.prompts), PROMPTS_AT_ONCE)
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    own = {}
    for round_of in range(0, len(chunks), size):
        number = round_of + rank
        if number >= len(chunks) and not synced:
            continue
        first = chunks[min(number, len(chunks) - 1)]
        ids = padded(space.prompts[first : first + PROMPTS_AT_ONCE], space.end).to(model.device)
        own[first] = text_features(model, ids).cpu()
    every = {first: part for of_rank in (all_gather(own) if ranks else [own]) for first, part in of_rank.items()}
    return torch.cat([every[first] for first in chunks]).to(model.device)


def _tell(model: PreTrainedModel, examples: Sequence[ImageExample], texts: Any) -> list[Answered]:
    pixels = examples[0].space.pixels.to_score([example.picture for example in examples]).to(model.device)
    scale: Any = model.logit_scale
    logits = scale.float().exp() * image_features(model, pixels) @ texts.T
    truth = torch.tensor([example.answer[0] for example in examples], device=logits.device)
    losses = functional.cross_entropy(logits.double(), truth, reduction="none").tolist()
    likeliest = logits.argmax(-1).tolist()
    right = [
        int(of_picture[example.own.start : example.own.stop].argmax()) + example.own.start == example.answer[0]
        for of_picture, example in zip(logits, examples, strict=True)
    ]
    return [Answered(str(best), 0, loss, own) for best, loss, own in zip(likeliest, losses, right, strict=True)]
