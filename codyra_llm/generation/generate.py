"""Batched generation of answers, and losses of reference answers; each prompt is read once.

Rows of different tasks share batches, each with its own length limit and stop strings: a decoding step takes the time
to read the weights, whatever the number of rows. Finished rows leave the batch. Questions with the same prompt (the
choices of one item) share a row.

For each batch, the prompts are read into a KV cache, shared prefixes only once. Then the reference answers are read for
their losses, and removed from the cache again. From the same state the model's answers are generated, several tokens
per pass where the next ones can be guessed (prompt_lookup.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.adapter.prompts import with_prompts
from codyra_llm.data.encode import padding_id
from codyra_llm.distributed.ranks import Ranks, all_gather, any_rank
from codyra_llm.example import Example
from codyra_llm.generation.kv_cache import Context, common, tokens_read
from codyra_llm.generation.prompt_lookup import Draft
from codyra_llm.models.head import answer_logits, logits_at_once
from codyra_llm.models.save import end_ids

PASS = 32  # largest number of tokens of a pass with guesses; that many take little more time than one


@dataclass(frozen=True)
class Answered:
    """A model's answer to a prompt, and its loss on the reference answer.

    Attributes:
        text: the model's answer.
        tokens: number of generated tokens, without an EOS token.
        loss: NLL of the reference answer, summed over its tokens, in nats; 0 if there is none.
        greedy: whether greedy decoding gives all tokens of the reference answer.
    """

    text: str
    tokens: int
    loss: float
    greedy: bool


@dataclass(frozen=True)
class Question:
    """An example to answer, the largest number of new tokens, and the strings that end the answer.

    Without a reference answer there is no loss; with 0 new tokens only the loss is computed.
    """

    example: Example
    max_new_tokens: int
    stop: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Hexadecimal hash of everything that the answer depends on except the model."""
        how = json.dumps([self.max_new_tokens, list(self.stop)]).encode()
        return hashlib.sha256(self.example.to_bytes() + how).hexdigest()


Ask = Callable[[Sequence[Question]], Sequence[Answered]]  # answers questions, in their order


@torch.inference_mode()
def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int = 16,
    ranks: Ranks | None = None,
    answered: dict[int, Answered] | None = None,
    on_round: Callable[[dict[int, Answered]], None] = lambda fresh: None,
    synced: bool = False,
) -> list[Answered]:
    """Answers questions greedily and computes the losses of their reference answers; the same on every rank.

    An answer ends at an EOS token of the tokenizer or the model (Gemma's also end a turn), before a stop string, or at
    its largest number of tokens. The sampling defaults of the model are not used. Which questions share a batch depends
    on the questions alone; in each round every rank answers one batch.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        questions: the questions.
        batch_size: number of different rows of a batch.
        ranks: the ranks that share the work; None: this process alone.
        answered: answers that are already known, by number of the question.
        on_round: called on every rank after each round with the new answers, by number of the question.
        synced: whether all ranks must take part in each forward pass; a rank without a batch then repeats the round's
            first.

    Returns:
        The answers, in the order of the questions.
    """
    answered = dict(answered or {})
    batches = _batches(questions, [i for i in range(len(questions)) if i not in answered], batch_size)

    def answer(mine: list[int]) -> list[Answered]:
        return _answer_batch(model, tokenizer, [questions[i] for i in mine], synced)

    for fresh in in_rounds(batches, answer, ranks, synced):
        answered |= fresh
        on_round(fresh)
    return [answered[i] for i in range(len(questions))]


def in_rounds(
    batches: Sequence[list[int]], answer: Callable[[list[int]], list[Answered]], ranks: Ranks | None, synced: bool
) -> Iterator[dict[int, Answered]]:
    """Yields the answers of each round, by number of the question; in a round every rank answers one batch.

    Args:
        batches: numbers of the questions of each batch.
        answer: answers a batch.
        ranks, synced: as for `answer_questions`.
    """
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    for first in range(0, len(batches), size):
        mine = batches[first + rank] if first + rank < len(batches) else batches[first] if synced else []
        own = answer(mine) if mine else []
        shares = [(mine, own)] if ranks is None else all_gather((mine, own))
        yield {i: answer for numbers, answers in shares for i, answer in zip(numbers, answers, strict=True)}


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Returns the text before the first stop string; leading whitespace of an answer does not end it."""
    opening = len(text) - len(text.lstrip())
    positions = [text.find(string, opening) for string in stop]
    found = [position for position in positions if position >= 0]
    return text[: min(found)] if found and opening < len(text) else text


def _batches(questions: Sequence[Question], order: Sequence[int], batch_size: int) -> list[list[int]]:
    """Returns batches of question numbers, each with up to `batch_size` different rows, for the fewest tokens to read.

    Rows are sorted by their limit, so that few rows wait for others, and then either by length or by their beginning,
    whichever costs less for these questions.
    """

    def cut(key: Callable[[Question], tuple[int, ...]]) -> list[list[int]]:
        ordered = sorted(order, key=lambda i: (key(questions[i]), _row(questions[i])), reverse=True)
        rows = [list(same) for _, same in groupby(ordered, key=lambda i: _row(questions[i]))]
        return [
            [i for row in rows[first : first + batch_size] for i in row] for first in range(0, len(rows), batch_size)
        ]

    def cost(batches: list[list[int]]) -> int:
        prompts = [{tuple(questions[i].example.prompt) for i in batch} for batch in batches]
        return sum(tokens_read(list(of_batch)) for of_batch in prompts)

    by_length = cut(lambda question: (question.max_new_tokens, len(question.example.prompt)))
    by_beginning = cut(lambda question: (question.max_new_tokens,))
    return min(by_length, by_beginning, key=cost)


def _row(question: Question) -> tuple[list[int], int, tuple[str, ...]]:
    """Returns the key of a question's row: questions with the same key share a row."""
    return question.example.prompt, question.max_new_tokens, tuple(question.stop)


def _answer_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], synced: bool
) -> list[Answered]:
    """Answers the questions of a batch; questions of the same row must be adjacent."""
    rows = [list(same) for _, same in groupby(questions, key=_row)]
    pad = padding_id(tokenizer)
    prompts = [row[0].example.prompt for row in rows]
    longest = max(max(len(each.example.answer), each.max_new_tokens) for each in questions)
    context, hidden = Context.of(model, with_prompts(model, prompts), longest + PASS, pad, in_step=synced)
    batch = _Batch(model, tokenizer, rows, end_tokens(model, tokenizer), synced)
    true = batch.true_answers(context, hidden)
    own = batch.own_answers(context, hidden)
    return [Answered(*own[k], *each) for k, of_row in enumerate(true) for each in of_row]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the tokens that end an answer: EOS and padding of the tokenizer, and the EOS tokens of the model."""
    return frozenset(end_ids(model, tokenizer) | {padding_id(tokenizer)})


@dataclass(frozen=True)
class _Batch:
    """Rows that are answered together, each with its questions.

    Attributes:
        ends: tokens that end an answer.
        synced: whether all ranks take part in every forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: list[list[Question]]
    ends: frozenset[int]
    synced: bool

    def true_answers(self, context: Context, hidden: torch.Tensor) -> list[list[tuple[float, bool]]]:
        """Returns (loss, whether greedy) of the reference answers of each row; the context ends as it started.

        Args:
            context: the prompts in a KV cache.
            hidden: state of each prompt's last token, [rows, hidden_size].
        """
        found: list[list[tuple[float, bool]]] = [[] for _ in self.rows]
        wanted, turn = [[each.example.answer for each in row] for row in self.rows], 0
        while self._any(any(turn < len(of_row) for of_row in wanted)):
            answers = [of_row[turn] if turn < len(of_row) else [] for of_row in wanted]
            states, inputs = hidden[:, None], [answer[:-1] for answer in answers]
            if self.synced or any(inputs):
                read = context.read(inputs, to_the_left=True)
                context.forget(read.shape[1])
                states = torch.cat([states, read], dim=1)
            lengths = [len(answer) for answer in answers]
            at_answer = torch.cat([states[row, :length] for row, length in enumerate(lengths)])
            losses, greedy = _token_losses(
                self.model, at_answer, [token for answer in answers for token in answer], at_once=self.synced
            )
            for row, (loss, hit) in enumerate(zip(losses.split(lengths), greedy.split(lengths), strict=True)):
                if turn < len(wanted[row]):
                    found[row].append((float(loss.sum()), bool(hit.all())))
            turn += 1
        return found

    def own_answers(self, context: Context, hidden: torch.Tensor) -> list[tuple[str, int]]:
        """Returns (text, number of tokens) of each row's greedy answer.

        Args:
            context: the prompts in a KV cache.
            hidden: state of each prompt's last token, [rows, hidden_size].
        """
        questions = [row[0] for row in self.rows]
        ids: list[list[int]] = [[] for _ in questions]
        drafts = [Draft(question.example.prompt if question.max_new_tokens else []) for question in questions]
        live = list(range(len(questions)))
        going = [row for row in live if questions[row].max_new_tokens]
        guesses: list[list[int]] = [[] for _ in live]
        states, asked = hidden[:, None], self._any(bool(going))
        while asked:
            said = dict(zip(live, self._said(states, guesses), strict=True))
            context.forget(states.shape[1], but=[len(said[row]) for row in live])
            for row, guess in zip(live, guesses, strict=True):
                drafts[row].settle(guess, said[row])
            going = [row for row in going if all(self._goes_on(row, token, ids[row]) for token in said[row])]
            asked = self._any(bool(going))
            if going and len(going) < len(live):
                live = [live[slot] for slot in context.keep([live.index(row) for row in going])]
            if asked:
                most = PASS // len(live) - 1 if context.gaps else 0
                left = [questions[row].max_new_tokens - len(ids[row]) for row in live]
                guesses = [drafts[row].guess(min(most, rest - 1)) for row, rest in zip(live, left, strict=True)]
                read = [[said[row][-1], *guess] for row, guess in zip(live, guesses, strict=True)]
                states = context.read(read, to_the_left=True)
            if asked and not going:  # the pass was only needed by other ranks
                context.forget(states.shape[1])
        texts = [str(self.tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
        return [
            (cut_at_stop(text, question.stop), len(each))
            for text, question, each in zip(texts, questions, ids, strict=True)
        ]

    def _said(self, states: torch.Tensor, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Returns the greedy tokens of each row: the correct part of its guess, and the token after that.

        Args:
            states: after each row's last token, and after each token of its guess [rows, columns, hidden_size].
            guesses: the guessed tokens of each row.
        """
        lengths = [1 + len(guess) for guess in guesses]
        read = torch.cat([states[slot, :length] for slot, length in enumerate(lengths)])
        likeliest = [each.tolist() for each in answer_logits(self.model, read).argmax(-1).split(lengths)]
        return [tokens[: common(guess, tokens) + 1] for guess, tokens in zip(guesses, likeliest, strict=True)]

    def _goes_on(self, row: int, token: int, ids: list[int]) -> bool:
        """Adds a token to an answer unless it ends it; returns whether the answer continues."""
        if token in self.ends:
            return False
        ids.append(token)
        question = self.rows[row][0]
        return len(ids) < question.max_new_tokens and not self._stopped(question.stop, ids)

    def _stopped(self, stop: Sequence[str], ids: list[int]) -> bool:
        # a token has at least one byte, so a stop string that is just complete lies within this many tokens
        tail = max((len(string.encode()) for string in stop), default=0) + 4
        end = self.tokenizer.decode(ids[-tail:], skip_special_tokens=True)
        if not any(string in end for string in stop):
            return False
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return cut_at_stop(text, stop) != text

    def _any(self, mine: bool) -> bool:
        return any_rank(mine, self.model.device) if self.synced else mine


def _token_losses(
    model: PreTrainedModel, hidden: torch.Tensor, targets: Sequence[int], at_once: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (NLL in nats, fp64; whether it has the largest logit) of each target token.

    Args:
        model: the model.
        hidden: [tokens, hidden_size].
        targets: ids of the tokens.
        at_once: whether to call the head once for all tokens, as where all ranks take part in each call.
    """
    chunk = max(1, len(targets)) if at_once else logits_at_once(model)
    wanted = torch.tensor(targets, dtype=torch.long, device=hidden.device)
    losses, greedy = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for states, ids in zip(hidden.split(chunk), wanted.split(chunk), strict=True):
        logits = answer_logits(model, states)
        losses.append(nn.functional.cross_entropy(logits, ids, reduction="none").cpu())
        greedy.append((logits.argmax(-1) == ids).cpu())
    return torch.cat(losses).double(), torch.cat(greedy)
