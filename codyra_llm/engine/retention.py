"""Retention: loss terms that keep a model close to the one before the task, without data of earlier tasks.

The change that a task makes to the model is measured where the task teaches nothing (at the prompt tokens of its rows,
and on text that the model generated before the task), and where it does (at its answers). KL(before || now) over the
whole vocabulary is added to the loss there; `before` is the model without its branches, so no second copy is stored.
For own text alone, the most likely tokens can be measured once before the task instead (`top_tokens`).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from codyra_llm.config import RetentionConfig
from codyra_llm.data.batches import IGNORED, GlobalBatches, MicroBatch
from codyra_llm.example import Example

PROMPT, ANSWER, OWN_TEXT = KINDS = 1, 2, 3  # of positions, in `MicroBatch.kinds`; 0: no kind
NAMES = ("prompts", "answers", "own_text")  # of their weights
STATE = "retention."  # prefix of the names of its tensors in a checkpoint in the middle of a task
RATE = 0.1  # of the dual ascent, in each step
FACTORS = (1e-2, 1e3)  # bounds of the factor on the weights that meets a budget


@dataclass
class Retention:
    """The retention of one task.

    Attributes:
        config: the weights and other settings.
        texts: ids of each text that the model generated before the task.
        batches: the batches of the task.
        factor: multiplies the weights, to meet `config.budget`.
        known: `top_tokens` of each text where `config.top_k` is set: [its tokens - 1, 2 k + 1].
    """

    config: RetentionConfig
    texts: Sequence[Sequence[int]]
    batches: GlobalBatches
    factor: float = 1.0
    known: Sequence[torch.Tensor] = ()

    @property
    def _weights(self) -> list[float]:
        return [getattr(self.config, name) for name in NAMES]

    def is_due(self, step: int) -> bool:
        """True if a step measures retention: the last of every `config.every`, since the first have changed little."""
        return (step + 1) % self.config.every == 0

    def texts_of(self, step: int) -> list[int]:
        """Returns the numbers of a step's texts, over all ranks: a function of the seed, the task and the step."""
        if not self.config.own_text or not self.is_due(step):
            return []
        count = min(self.config.texts_per_step, len(self.texts))
        seed = f"{self.batches.seed}/{self.batches.task}/texts/{step}"
        return random.Random(seed).sample(range(len(self.texts)), count)

    def positions(self, step: int) -> list[int]:
        """Returns the number of positions of each kind in a step, over all ranks; 0 where the step measures nothing."""
        if not self.is_due(step):
            return [0] * len(KINDS)
        examples = [self.batches.examples[row] for row in self.batches.rows_of(step)]
        prompts = sum(max(0, len(example.prompt) - 1) for example in examples)
        texts = sum(len(self.texts[number]) - 1 for number in self.texts_of(step))
        return [prompts, sum(example.learned for example in examples), texts]

    def with_kinds(self, batch: MicroBatch, step: int, number: int, rank: int) -> MicroBatch:
        """Returns a step's micro batch with its share of the texts as further rows, and each position's kind."""
        examples = [self.batches.examples[row] for row in batch.numbers]
        passes = self.batches.accumulation * self.batches.world_size
        place = number * self.batches.world_size + rank
        own = self.texts_of(step)[place::passes]
        texts = [self.texts[text] for text in own]
        if not self.known:
            return _with_texts(_with_rows(batch, examples), texts, self.batches.pad_token_id)
        batch = replace(batch, kinds=torch.zeros_like(batch.labels, dtype=torch.int8))
        known = torch.cat([self.known[0][:0], *(self.known[text] for text in own)])
        return replace(_with_texts(batch, texts, self.batches.pad_token_id), known=known)

    @property
    def added_cost(self) -> float:
        """FLOPs that retention adds to an optimizer step, relative to one of fixed-rank LoRA (`cost_of`)."""
        steps = range(self.batches.total_steps)
        rows = sum(map(self.batches.tokens, steps))
        texts = sum(len(self.texts[number]) for step in steps for number in self.texts_of(step))
        return cost_of(self.config, self.config.every * texts / rows)

    def weights(self, step: int) -> list[float]:
        """Returns, for each kind, the factor of the divergence summed over a step's positions."""
        of_kinds = zip(self._weights, self.positions(step), strict=True)
        return [self.factor * self.config.every * weight / max(1, count) for weight, count in of_kinds]

    def means(self, step: int, sums: Sequence[float]) -> dict[str, float]:
        """Returns the mean divergence of each kind with a weight, in nats per token, from the sums over all ranks."""
        of_kinds = zip(NAMES, self._weights, sums, self.positions(step), strict=True)
        return {name: total / count for name, weight, total, count in of_kinds if weight and count}

    def update(self, means: Mapping[str, float]) -> None:
        """Updates the factor by dual ascent: it rises while the largest divergence exceeds the budget, else falls."""
        if self.config.budget is None or not means:
            return
        excess = max(-1.0, min(1.0, max(means.values()) / self.config.budget - 1))
        low, high = FACTORS
        self.factor = min(high, max(low, self.factor * math.exp(RATE * excess)))

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the tensors for a checkpoint in the middle of the task."""
        known = {"known": torch.cat(list(self.known))} if self.known else {}
        return texts_state(self.texts) | {"factor": torch.tensor(self.factor, dtype=torch.float64)} | known


def cost_of(config: RetentionConfig, texts: float) -> float:
    """Returns the FLOPs that retention adds to an optimizer step, relative to one of fixed-rank LoRA, without the head.

    A forward pass without gradient costs half a step. Unless `top_k` is set, rows and texts need one; texts cost a
    whole step as well.

    Args:
        config: the weights and other settings.
        texts: tokens of the texts of a step that measures retention, relative to the tokens of its rows.
    """
    added = texts if config.top_k else 0.5 + 1.5 * texts
    return added / config.every if config.measures else 0.0


def top_tokens(logits: torch.Tensor, count: int) -> torch.Tensor:
    """[tokens, 2 k + 1]: the most likely next tokens, and all others as one, from logits [tokens, vocabulary].

    The columns are the log-probabilities of k tokens, that of all others together, then the ids of the k, which fp32
    represents exactly below 2^24. At least one token is among the others.
    """
    count = min(count, logits.shape[-1] - 1)
    every = logits.float().log_softmax(-1)
    ids = every.topk(count).indices
    return torch.cat([with_others(every, ids), ids.float()], dim=-1)


def with_others(every: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[tokens, k + 1]: log-probabilities (of [tokens, vocabulary]) of `ids` [tokens, k], then that of all others."""
    others = every.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([every.gather(-1, ids), others], dim=-1)


def texts_state(texts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Returns texts as tensors: their ids, concatenated, and their lengths."""
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int64)
    return {"ids": ids, "lengths": torch.tensor([len(text) for text in texts], dtype=torch.int64)}


def texts_of_state(state: dict[str, torch.Tensor]) -> list[list[int]]:
    """Returns the texts of a `texts_state`."""
    return [part.tolist() for part in state["ids"].split(state["lengths"].tolist())]


def _with_rows(batch: MicroBatch, examples: Sequence[Example]) -> MicroBatch:
    """Returns a batch with the kinds of its own positions; a position has the kind of the token that it predicts."""
    kinds = functional.pad((batch.labels[:, 1:] != IGNORED).to(torch.int8) * ANSWER, (0, 1))
    at = 0
    for row, example in enumerate(examples):
        line, begin = (row, 0) if batch.position_ids is None else (0, at)
        kinds[line, begin : begin + max(0, len(example.prompt) - 1)] = PROMPT  # the last one predicts the answer
        at += len(example)
    return replace(batch, kinds=kinds)


def _with_texts(batch: MicroBatch, texts: Sequence[Sequence[int]], pad_token_id: int) -> MicroBatch:
    """Returns a batch with texts as further rows or, in a packed one, at its end."""
    assert batch.kinds is not None
    ids, labels, kinds, positions = batch.input_ids, batch.labels, batch.kinds, batch.position_ids
    if not texts:
        return batch
    if positions is not None:
        flat = torch.tensor([token for text in texts for token in text])[None]
        own = torch.cat([_kinds_of_text(len(text)) for text in texts])[None]
        return replace(
            batch,
            input_ids=torch.cat([ids, flat], dim=1),
            labels=torch.cat([labels, torch.full_like(flat, IGNORED)], dim=1),
            position_ids=torch.cat([positions, *(torch.arange(len(text))[None] for text in texts)], dim=1),
            kinds=torch.cat([kinds, own], dim=1),
        )
    rows, width = len(ids), max(ids.shape[1], *map(len, texts))
    wide = [torch.full((rows + len(texts), width), fill, dtype=part.dtype)
            for part, fill in ((ids, pad_token_id), (labels, IGNORED), (kinds, 0))]  # fmt: skip
    for whole, part in zip(wide, (ids, labels, kinds), strict=True):
        whole[:rows, : ids.shape[1]] = part
    for row, text in enumerate(texts, rows):
        wide[0][row, : len(text)] = torch.tensor(text)
        wide[2][row, : len(text)] = _kinds_of_text(len(text))
    return replace(batch, input_ids=wide[0], labels=wide[1], kinds=wide[2])


def _kinds_of_text(length: int) -> torch.Tensor:
    kinds = torch.full((length,), OWN_TEXT, dtype=torch.int8)
    kinds[-1] = 0  # what follows the last token is not known
    return kinds
