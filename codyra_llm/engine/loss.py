"""The loss of a causal model, which computes logits at answer positions only."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import without_branches
from codyra_llm.adapter.prompts import prompts_of
from codyra_llm.data.batches import IGNORED, GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.engine.retention import KINDS, OWN_TEXT, Retention, with_others
from codyra_llm.methods.hooks import NO_HOOKS, AnswerTokens, Hooks, overrides
from codyra_llm.models.head import answer_logits, logits_at_once

Term = Callable[[torch.Tensor, AnswerTokens, torch.Tensor | None], torch.Tensor | None]


class AnswerLoss(nn.Module):
    """The summed negative log-likelihood of the answers of a batch, as a module that an engine can wrap.

    Args:
        model: a causal LM of transformers; its decoder runs over all positions, its head over answer positions.
        hooks: the method's hooks, whose term on the outputs is added.
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
        kinds: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the loss of a batch in nats, fp32; the arguments are the fields of a MicroBatch.

        Returns:
            A scalar; with `kinds`, [1 + KINDS]: the loss, then for each kind the sum of KL(before || now) over its
            positions, where `before` is the model without its branches. With `known`, own text is the only kind that is
            measured, and `known` replaces that model.
        """
        hidden = self._read(input_ids, labels, position_ids)
        targets = labels[:, 1:]
        line, column = (targets != IGNORED).nonzero(as_tuple=True)  # once: it waits for the device
        before = teacher = places = None
        if (kinds is not None and known is None) or (self.term and self.hooks.has_teacher):
            with torch.no_grad(), without_branches(self.model):
                before = self._read(input_ids, labels, position_ids)
        if self.term:
            places = _places(line, column, len(targets), position_ids, numbers)
            teacher = before[:, :-1][line, column] if before is not None and self.hooks.has_teacher else None
        answers = hidden[:, :-1][line, column], targets[line, column]
        loss = summed_loss(self.model, *answers, self.term, places, teacher)
        if kinds is None:
            return loss
        if known is not None:
            own = summed_top_divergence(self.model, hidden[kinds == OWN_TEXT], known)
            return torch.stack([loss, *(torch.zeros_like(loss) for _ in KINDS[1:]), own])
        assert before is not None
        at_kinds = [kinds == kind for kind in KINDS]
        return torch.stack([loss, *(summed_divergence(self.model, hidden[at], before[at]) for at in at_kinds)])

    def _read(self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Returns the hidden states after each token [rows, tokens, hidden_size], without those of added prompts."""
        prompts, ids = prompts_of(self.model), input_ids
        if prompts:  # under ZeRO-3, keys are gathered where they are read, within this module's forward pass
            ids = torch.cat([prompts.chosen(ids, _lengths(labels, prompts.whole_rows)), ids], dim=1)
        decoder = self.model.get_decoder()
        hidden: torch.Tensor = decoder(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return hidden[:, ids.shape[1] - input_ids.shape[1] :]


def _lengths(labels: torch.Tensor, whole: bool) -> list[int]:
    """Returns the tokens of each row before its answer, or (`whole`) up to its end; without an answer, all columns."""
    learned, columns = (labels != IGNORED).int(), labels.shape[1]
    found = columns - learned.flip(1).argmax(1) if whole else learned.argmax(1)
    return torch.where(learned.any(1), found, columns).tolist()


def _places(
    line: torch.Tensor, column: torch.Tensor, lines: int, position_ids: torch.Tensor | None, numbers: Sequence[int]
) -> torch.Tensor:
    """[answer tokens, 2]: the row number of each answer token, and its index among the answer tokens of its row.

    Args:
        line: [answer tokens], the line of each in the batch.
        column: [answer tokens], the column of each in the batch.
        lines: number of lines of the batch.
        position_ids: [1, tokens] of a packed batch; None if each line is one row.
        numbers: row numbers of the batch; its line numbers if empty.
    """
    example = line if position_ids is None else (position_ids[0] == 0).cumsum(0)[column] - 1
    of_examples = torch.tensor(numbers or range(lines), device=line.device)
    first = torch.searchsorted(example, example)  # the tokens of an example are consecutive
    return torch.stack([of_examples[example], torch.arange(len(example), device=line.device) - first], dim=1)


class AnswerObjective:
    """The mean loss per answer token of an optimizer step, as passes of this rank: one for each of its micro batches.

    Args:
        engine: the DeepSpeed engine around an `AnswerLoss`.
        batches: the rows of each step.
        ranks: the ranks that a step is partitioned over.
        retention: adds its divergences, each a mean over its positions in the step, with their weights.
    """

    def __init__(self, engine: Any, batches: GlobalBatches, ranks: Ranks, retention: Retention | None = None) -> None:
        self.engine, self.batches, self.ranks, self.retention = engine, batches, ranks, retention

    def passes(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (scalar to call backward on; sums of loss and divergences, [1 + KINDS], detached) for each pass.

        DeepSpeed averages gradients over ranks and micro batches; the objective is a sum over both, divided by the
        number of answer tokens of all ranks.
        """
        accumulation, device = self.engine.gradient_accumulation_steps(), self.ranks.device
        retention = self.retention if self.retention and self.retention.is_due(step) else None
        passes = self.ranks.size * accumulation
        share = passes / self.batches.answer_tokens(step)
        of_kinds = [passes * weight for weight in retention.weights(step)] if retention else []
        shares = torch.tensor([share, *of_kinds], device=device)
        for number, batch in enumerate(self.batches.micro_batches(step, self.ranks.rank)):
            if retention:
                batch = retention.with_kinds(batch, step, number, self.ranks.rank)
            ids, labels, positions, kinds, known = (
                None if part is None else part.to(device)
                for part in (batch.input_ids, batch.labels, batch.position_ids, batch.kinds, batch.known)
            )
            found = self.engine(ids, labels, positions, batch.numbers, kinds, known)
            if retention:
                yield (found * shares).sum(), found.detach()
            else:
                yield found * share, functional.pad(found.detach()[None], (0, len(KINDS)))

    def mean(self, step: int, summed: float) -> float:
        """Returns the mean loss of a step per answer token, in nats, from its passes' losses summed over all ranks."""
        return summed / self.batches.answer_tokens(step)


def summed_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    term: Term | None = None,
    places: torch.Tensor | None = None,
    teacher: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the negative log-likelihood in nats, summed over tokens; computed in chunks where logits are too large.

    A chunk's logits are recomputed in the backward pass, so that the logits of only one chunk are in memory.

    Args:
        model: the model with the output head.
        hidden: [tokens, hidden_size].
        targets: [tokens], ids.
        term: `Hooks.output_loss`, added to the loss.
        places: [tokens, 2], the row of each token and its index in the row's answer.
        teacher: [tokens, hidden_size], the hidden states from which the term's teacher logits are computed.
    """

    def loss(
        hidden: torch.Tensor, targets: torch.Tensor, places: torch.Tensor | None, teacher: torch.Tensor | None
    ) -> torch.Tensor:
        logits = answer_logits(model, hidden)
        likelihood = functional.cross_entropy(logits, targets, reduction="sum")
        if term is None or places is None:
            return likelihood
        with torch.no_grad():
            known = None if teacher is None else answer_logits(model, teacher)
        if not len(targets):  # a pass without rows, which must gather the head as often as the other ranks do
            return likelihood
        added = term(logits, AnswerTokens(targets, *places.unbind(1)), known)
        return likelihood if added is None else likelihood + added

    return _in_chunks(model, loss, hidden, targets, places, teacher)


def summed_divergence(model: PreTrainedModel, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Returns KL(before || now) of the next token in nats, over the vocabulary, summed over tokens; in chunks.

    Args:
        model: the model with the output head.
        now: hidden states [tokens, hidden_size].
        before: hidden states [tokens, hidden_size], without gradient.
    """

    def loss(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            known = answer_logits(model, before).log_softmax(-1)
        return functional.kl_div(answer_logits(model, now).log_softmax(-1), known, reduction="sum", log_target=True)

    return _in_chunks(model, loss, now, before)


def summed_top_divergence(model: PreTrainedModel, now: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Returns `summed_divergence` with all but the most likely tokens merged into one; never larger than the exact one.

    Args:
        model: the model with the output head.
        now: hidden states [tokens, hidden_size].
        known: `top_tokens` of the model before the task, [tokens, 2 k + 1].
    """

    def loss(now: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        count = known.shape[-1] // 2
        found = with_others(answer_logits(model, now).float().log_softmax(-1), known[:, count + 1 :].long())
        return functional.kl_div(found, known[:, : count + 1], reduction="sum", log_target=True)

    return _in_chunks(model, loss, now, known)


def _in_chunks(model: PreTrainedModel, loss: Callable[..., torch.Tensor], *parts: torch.Tensor | None) -> torch.Tensor:
    """Sums a loss over tokens, passing its arguments [tokens, ...] chunk by chunk; None stays None."""
    first = parts[0]
    assert first is not None
    tokens = logits_at_once(model)
    count = _same_on_all_ranks(model, max(1, -(-len(first) // tokens)))
    if count == 1:
        return loss(*parts)
    bounds = [(at * tokens, (at + 1) * tokens) for at in range(count)]
    chunks = [[None if part is None else part[begin:end] for part in parts] for begin, end in bounds]
    return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def _same_on_all_ranks(model: PreTrainedModel, count: int) -> int:
    """Returns the largest count of all ranks if the head is partitioned, since each call gathers it collectively."""
    weight = model.get_output_embeddings().weight
    if not is_zero_param(weight):
        return count
    largest = torch.tensor(count, device=weight.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
