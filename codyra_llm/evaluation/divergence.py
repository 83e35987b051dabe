"""The KL divergence of a model's outputs after a task from those of the model before the task."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel

from codyra_llm.data.batches import IGNORED, collate
from codyra_llm.distributed.ranks import Ranks, all_gather
from codyra_llm.engine.loss import summed_divergence
from codyra_llm.example import Example

Before = Callable[[], AbstractContextManager[object]]  # returns a context in which the model is that before the task


@torch.no_grad()
def divergence(
    model: PreTrainedModel,
    examples: Sequence[Example],
    before: Before,
    pad_token_id: int,
    batch_size: int,
    ranks: Ranks,
) -> float:
    """Returns the mean KL(before || now) of the next token over all answer tokens, in nats; the same on every rank.

    Args:
        model: the model after the task, `gathered_for_inference`.
        before: returns a context in which it is the model before the task.
    """
    numbers = list(range(0, len(examples), batch_size))
    own = []
    for first in range(0, len(numbers), ranks.size):
        mine = first + ranks.rank  # all ranks run the same number of passes: at stage 3 they gather weights together
        batch = examples[numbers[mine if mine < len(numbers) else first] :][:batch_size]
        found = _of_batch(model, batch, before, pad_token_id)
        if mine < len(numbers):
            own.append(found)
    total = torch.tensor([pair for of_rank in all_gather(own) for pair in of_rank], dtype=torch.float64).sum(0)
    return float(total[0] / total[1])


def _of_batch(
    model: PreTrainedModel, examples: Sequence[Example], before: Before, pad_token_id: int
) -> tuple[float, int]:
    """Returns (KL in nats, number of answer tokens) of one batch."""
    batch = collate(examples, pad_token_id)
    ids, at_answer = batch.input_ids.to(model.device), batch.labels[:, 1:] != IGNORED
    now = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][at_answer]
    with before():
        then = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][at_answer]
    return float(summed_divergence(model, now, then)), len(now)
