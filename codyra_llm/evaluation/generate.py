"""Answers and their losses, batched: rows sorted by length, left-padded, each prompt computed once.

Rows of different tasks share batches, each with its own length limit and stops: a decoding step costs the time to read
the weights, however many rows take it.

The prompt's KV cache serves twice: first the true answer is fed through it for its loss, then the cache is cut back
to the prompt and the model's own answer is generated from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from codyra_llm.data.batches import IGNORED
from codyra_llm.data.encode import Example, padding_id
from codyra_llm.engine.launch import World, gather
from codyra_llm.engine.loss import answer_logits


@dataclass(frozen=True)
class Answered:
    """The model's own answer to a prompt, how many tokens it took, and the summed loss of the true one in nats."""

    text: str
    tokens: int
    loss: float


@dataclass(frozen=True)
class Question:
    """An example to answer, the most tokens its answer may take, and the strings that end it."""

    example: Example
    max_new_tokens: int
    stop: Sequence[str] = ()


@torch.inference_mode()
def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int = 16,
    world: World | None = None,
    answered: dict[int, Answered] | None = None,
    on_round: Callable[[dict[int, Answered]], None] = lambda fresh: None,
    synced: bool = False,
) -> list[Answered]:
    """Greedy answers to the questions and the loss of their true answers, in their order, the same on every rank.

    An answer ends at the end-of-sequence token, at a stop string (left out of it) or at its most tokens. The model's
    own sampling defaults are not used. Which questions share a batch depends on the questions alone; the ranks take
    the batches in turn, a round at a time.

    Args:
        world: the ranks that share the work; None: this process alone.
        answered: by number of the question, answers that are there already.
        on_round: called on every rank after each round with what it gave.
        synced: each forward pass takes all ranks; one without a batch of its own then repeats another's.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)
    pad = padding_id(tokenizer)
    greedy = GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad)
    answered = dict(answered or {})
    order = sorted(range(len(questions)), key=lambda i: _cost(questions[i]), reverse=True)
    order = [i for i in order if i not in answered]
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    defaults, model.generation_config = model.generation_config, greedy
    try:
        for first in range(0, len(batches), size):
            mine = batches[first + rank] if first + rank < len(batches) else batches[first] if synced else []
            own = _answer_batch(model, tokenizer, [questions[i] for i in mine], pad, synced) if mine else []
            shares = [(mine, own)] if world is None else gather((mine, own))
            fresh = {i: answer for numbers, answers in shares for i, answer in zip(numbers, answers, strict=True)}
            answered |= fresh
            on_round(fresh)
    finally:
        model.generation_config = defaults
    return [answered[i] for i in range(len(questions))]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string; blank space that opens an answer does not end it."""
    opening = len(text) - len(text.lstrip())
    positions = [text.find(string, opening) for string in stop]
    found = [position for position in positions if position >= 0]
    return text[: min(found)] if found and opening < len(text) else text


def _cost(question: Question) -> tuple[int, int]:
    """What rows of a batch should have in common, so that few wait for one."""
    return question.max_new_tokens, len(question.example.prompt)


def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    pad: int,
    synced: bool = False,
) -> list[Answered]:
    examples = [question.example for question in questions]
    width = max(len(example.prompt) for example in examples)
    prompts, mask = _pad_left([example.prompt for example in examples], width, pad)
    prompts, mask = prompts.to(model.device), mask.to(model.device)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # sliding-window layers keep what a cut back would need
    losses = _answer_losses(model, examples, prompts, mask, cache, synced)
    output = model.generate(  # type: ignore[operator]  # its type is lost on a mixin
        prompts,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=max(question.max_new_tokens for question in questions),
        stopping_criteria=[_Ends(tokenizer, questions, width)],
        synced_gpus=synced,
    )
    answered = []
    for question, ids, loss in zip(questions, output[:, width:].tolist(), losses, strict=True):
        ids = ids[: question.max_new_tokens]
        ended = [k for k, token in enumerate(ids) if token in (tokenizer.eos_token_id, pad)]
        ids = ids[: ended[0]] if ended else ids
        text = cut_at_stop(str(tokenizer.decode(ids, skip_special_tokens=True)), question.stop)
        answered.append(Answered(text, len(ids), loss))
    return answered


def _answer_losses(
    model: PreTrainedModel,
    examples: Sequence[Example],
    prompts: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    synced: bool,
) -> list[float]:
    """Losses of the true answers; leaves the cache with all of each prompt but its last token."""
    decoder = model.get_decoder()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if prompts.shape[1] > 1:
        decoder(
            input_ids=prompts[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
    elif synced:  # other ranks may have longer prompts
        decoder(input_ids=prompts, use_cache=False)
    length = max(len(example.answer) for example in examples)
    targets = torch.full((len(examples), length), IGNORED)
    for k, example in enumerate(examples):
        targets[k, : len(example.answer)] = torch.tensor(example.answer)
    targets = targets.to(prompts.device)
    # what predicts answer token j is the prompt's last token (j = 0) or answer token j - 1
    inputs = torch.cat([prompts[:, -1:], targets[:, :-1].clamp(min=0)], dim=1)
    hidden = decoder(
        input_ids=inputs,
        attention_mask=torch.cat([mask[:, :-1], torch.ones_like(inputs)], dim=1),
        position_ids=positions[:, -1:] + torch.arange(length, device=prompts.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    cache.crop(-length)
    at_answer = targets != IGNORED
    tokens = nn.functional.cross_entropy(answer_logits(model, hidden[at_answer]), targets[at_answer], reduction="none")
    parts = tokens.double().split([len(example.answer) for example in examples])
    return [float(part.sum()) for part in parts]


def _pad_left(rows: Sequence[Sequence[int]], width: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both [rows, width]."""
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, width - len(row) :] = torch.tensor(row)
        mask[k, width - len(row) :] = 1
    return ids, mask


class _Ends(StoppingCriteria):
    """Ends a row when its answer holds one of its stop strings or has its most tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], width: int) -> None:
        self.tokenizer, self.questions, self.width = tokenizer, questions, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        answers = input_ids[:, self.width :]
        done = [
            answers.shape[1] >= question.max_new_tokens or self._stopped(question, ids)
            for question, ids in zip(self.questions, answers, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)

    def _stopped(self, question: Question, ids: torch.Tensor) -> bool:
        if not question.stop:
            return False
        text = str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        return cut_at_stop(text, question.stop) != text
