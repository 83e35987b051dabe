"""The loss of a causal model at answer positions only: nothing else of the vocabulary's width is ever computed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import without_branches
from codyra_llm.data.batches import IGNORED, GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.methods.hooks import NO_HOOKS, AnswerTokens, Hooks, overrides
from codyra_llm.models.head import answer_logits, logits_at_once

Term = Callable[[torch.Tensor, AnswerTokens, torch.Tensor | None], torch.Tensor | None]


class AnswerLoss(nn.Module):
    """The summed negative log-likelihood of the answers of a batch, as a module that an engine can wrap.

    Args:
        model: a causal LM of transformers; its decoder runs over all positions, its head over answer positions.
        hooks: of the method, whose term on the outputs is added.
    """

    def __init__(self, model: PreTrainedModel, hooks: Hooks = NO_HOOKS) -> None:
        super().__init__()
        self.model, self.hooks = model, hooks
        self.term: Term | None = hooks.output_loss if overrides(hooks, "output_loss") else None

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        numbers: Sequence[int] = (),
    ) -> torch.Tensor:
        """input_ids, labels, position_ids [rows, tokens], numbers as a MicroBatch has them -> nats, a scalar, fp32."""
        decoder = self.model.get_decoder()
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        at_answer = targets != IGNORED
        if not self.term:
            return summed_loss(self.model, hidden[:, :-1][at_answer], targets[at_answer])
        teacher = None
        if self.hooks.has_teacher:
            with torch.no_grad(), without_branches(self.model):
                found = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
            teacher = found[:, :-1][at_answer]
        places = _places(at_answer, position_ids, numbers)
        return summed_loss(self.model, hidden[:, :-1][at_answer], targets[at_answer], self.term, places, teacher)


def _places(at_answer: torch.Tensor, position_ids: torch.Tensor | None, numbers: Sequence[int]) -> torch.Tensor:
    """[answer tokens, 2]: the number of each one's row, and which of its row's answer tokens it is."""
    line, column = at_answer.nonzero(as_tuple=True)
    example = line if position_ids is None else (position_ids[0] == 0).cumsum(0)[column] - 1
    of_examples = torch.tensor(numbers or range(len(at_answer)), device=line.device)
    first = torch.searchsorted(example, example)  # the tokens of an example follow each other
    return torch.stack([of_examples[example], torch.arange(len(example), device=line.device) - first], dim=1)


class AnswerObjective:
    """The mean loss per answer token of an optimizer step, as passes of this rank: one for each of its micro batches.

    Args:
        engine: DeepSpeed's, around an `AnswerLoss`. batches: the rows of each step. ranks: that split them.
    """

    def __init__(self, engine: Any, batches: GlobalBatches, ranks: Ranks) -> None:
        self.engine, self.batches, self.ranks = engine, batches, ranks

    def passes(self, step: int) -> Iterator[tuple[torch.Tensor, float]]:
        """(loss, share) of each pass: the summed loss, a scalar, and the factor to multiply it by before backward.

        DeepSpeed averages gradients over ranks and micro batches; the objective is a sum over both, divided by the
        number of answer tokens of all ranks.
        """
        accumulation, device = self.engine.gradient_accumulation_steps(), self.ranks.device
        share = self.ranks.size * accumulation / self.batches.answer_tokens(step)
        for batch in self.batches.micro_batches(step, self.ranks.rank):
            positions = None if batch.position_ids is None else batch.position_ids.to(device)
            yield self.engine(batch.input_ids.to(device), batch.labels.to(device), positions, batch.numbers), share

    def mean(self, step: int, summed: float) -> float:
        """The value of a step, in nats, from the sum of its passes' losses over all ranks."""
        return summed / self.batches.answer_tokens(step)


def summed_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    term: Term | None = None,
    places: torch.Tensor | None = None,
    teacher: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over tokens; logits that do not fit at once are computed in chunks.

    A chunk's logits are computed again in the backward pass, so that only one chunk's are held at any time.

    Args:
        model: whose head is used. hidden: [tokens, hidden_size]. targets: [tokens], ids.
        term: `Hooks.output_loss`, added to the loss. places: [tokens, 2], row and place of each token in its answer.
        teacher: [tokens, hidden_size], the hidden states that the term's teacher logits are made of.
    """

    def loss(
        hidden: torch.Tensor, targets: torch.Tensor, places: torch.Tensor | None, teacher: torch.Tensor | None
    ) -> torch.Tensor:
        logits = answer_logits(model, hidden)
        likelihood = nn.functional.cross_entropy(logits, targets, reduction="sum")
        if term is None or places is None:
            return likelihood
        with torch.no_grad():
            known = None if teacher is None else answer_logits(model, teacher)
        if not len(targets):  # a pass without rows, in which the head was gathered as often as on the other ranks
            return likelihood
        added = term(logits, AnswerTokens(targets, *places.unbind(1)), known)
        return likelihood if added is None else likelihood + added

    tokens = logits_at_once(model)
    if len(targets) <= tokens:
        return loss(hidden, targets, places, teacher)
    none = [None] * -(-len(targets) // tokens)
    optional = [none if each is None else each.split(tokens) for each in (places, teacher)]
    chunks = zip(hidden.split(tokens), targets.split(tokens), *optional, strict=True)
    return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
