"""The loss of a causal model at answer positions only: nothing else of the vocabulary's width is ever computed."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import without_branches
from codyra_llm.data.batches import IGNORED
from codyra_llm.methods.hooks import NO_HOOKS, Hooks, overrides
from codyra_llm.models.head import answer_logits, logits_at_once

Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor | None]


class AnswerLoss(nn.Module):
    """The summed negative log-likelihood of the answers of a batch, as a module that an engine can wrap.

    Args:
        model: a causal LM of transformers; its decoder runs over all positions, its head over answer positions.
        hooks: of the method, whose term on the outputs is added.
    """

    def __init__(self, model: PreTrainedModel, hooks: Hooks = NO_HOOKS) -> None:
        super().__init__()
        self.model, self.hooks = model, hooks
        self.term = hooks.output_loss if overrides(hooks, "output_loss") else None

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """input_ids, labels, position_ids [rows, tokens] as a MicroBatch has them -> a scalar in nats, fp32."""
        decoder = self.model.get_decoder()
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        at_answer = targets != IGNORED
        teacher = None
        if self.term and self.hooks.has_teacher:
            with torch.no_grad(), without_branches(self.model):
                found = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
            teacher = found[:, :-1][at_answer]
        return summed_loss(self.model, hidden[:, :-1][at_answer], targets[at_answer], self.term, teacher)


def summed_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    term: Term | None = None,
    teacher: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over tokens; logits that do not fit at once are computed in chunks.

    A chunk's logits are computed again in the backward pass, so that only one chunk's are held at any time.

    Args:
        model: whose head is used. hidden: [tokens, hidden_size]. targets: [tokens], ids.
        term: `Hooks.output_loss`, added to the loss.
        teacher: [tokens, hidden_size], the hidden states that the term's teacher logits are made of.
    """

    def loss(hidden: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
        logits = answer_logits(model, hidden)
        likelihood = nn.functional.cross_entropy(logits, targets, reduction="sum")
        if term is None:
            return likelihood
        with torch.no_grad():
            known = None if teacher is None else answer_logits(model, teacher)
        added = term(logits, targets, known)
        return likelihood if added is None else likelihood + added

    tokens = logits_at_once(model)
    if len(targets) <= tokens:
        return loss(hidden, targets, teacher)
    taught = [None] * -(-len(targets) // tokens) if teacher is None else teacher.split(tokens)
    chunks = zip(hidden.split(tokens), targets.split(tokens), taught, strict=True)
    return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
