"""Answers and the losses of true answers, batched: each prompt is read once, rows that have ended leave the batch.

Rows of different tasks share batches, each with its own length limit and stops: a decoding step costs the time to read
the weights, however many rows take it. Questions with the same prompt (the choices of one item) share its row.

A batch's prompts are read, what they have in common once; then their true answers, for the losses, which are taken
back again; and from the same state the model's own answers are generated, several tokens in a pass where the next ones
can be guessed (draft.py).
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

PASS = 32  # tokens that a pass may take for the sake of guesses; that many cost little more than one


@dataclass(frozen=True)
class Answered:
    """The model's own answer to a prompt and how it takes the true one.

    Attributes:
        text: its own answer.
        tokens: how many that took.
        loss: of the true answer, summed over its tokens, in nats; 0 where there is none.
        greedy: whether the model's own answer would begin with all tokens of the true one.
    """

    text: str
    tokens: int
    loss: float
    greedy: bool


@dataclass(frozen=True)
class Question:
    """An example to answer, the most tokens its answer may take, and the strings that end it.

    With no true answer there is no loss; with 0 tokens only the loss is asked for.
    """

    example: Example
    max_new_tokens: int
    stop: Sequence[str] = ()

    @property
    def key(self) -> str:
        """A hash of all that its answer depends on but the model, hexadecimal."""
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
    """Greedy answers to the questions and the loss of their true answers, in their order, the same on every rank.

    An answer ends at an end-of-sequence token of the tokenizer or the model (Gemma's end a turn as well), at a stop
    string (left out of it) or at its most tokens. The model's own sampling defaults are not used. Which questions share
    a batch depends on the questions alone; the ranks take the batches in turn, a round at a time.

    Args:
        ranks: those that the work is split over; None: this process alone.
        answered: by number of the question, answers that are there already.
        on_round: called on every rank after each round with what it gave.
        synced: each forward pass takes all ranks; one without a batch of its own then repeats another's.
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
    """The answers to batches of numbered questions, by number, round by round; the ranks take the batches in turn.

    Args:
        answer: answers a batch. ranks, synced: as of `answer_questions`.
    """
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    for first in range(0, len(batches), size):
        mine = batches[first + rank] if first + rank < len(batches) else batches[first] if synced else []
        own = answer(mine) if mine else []
        shares = [(mine, own)] if ranks is None else all_gather((mine, own))
        yield {i: answer for numbers, answers in shares for i, answer in zip(numbers, answers, strict=True)}


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string; blank space that opens an answer does not end it."""
    opening = len(text) - len(text.lstrip())
    positions = [text.find(string, opening) for string in stop]
    found = [position for position in positions if position >= 0]
    return text[: min(found)] if found and opening < len(text) else text


def _batches(questions: Sequence[Question], order: Sequence[int], batch_size: int) -> list[list[int]]:
    """Numbers of questions, `batch_size` different rows at a time, so ordered that least is read.

    Rows of a batch should have the same limit, so that few wait for one, and then either about the same length or
    the same beginning: the better of the two for these questions.
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
    """What questions have in common that one row of a batch answers."""
    return question.example.prompt, question.max_new_tokens, tuple(question.stop)


def _answer_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], synced: bool
) -> list[Answered]:
    """Answers questions together; those of one row are neighbours."""
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
    """The tokens that end an answer: the tokenizer's end and padding, and the model's own ends."""
    return frozenset(end_ids(model, tokenizer) | {padding_id(tokenizer)})


@dataclass(frozen=True)
class _Batch:
    """Rows that are answered together, each with its questions.

    Attributes:
        ends: tokens that end an answer.
        synced: all ranks take every forward pass in step.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: list[list[Question]]
    ends: frozenset[int]
    synced: bool

    def true_answers(self, context: Context, hidden: torch.Tensor) -> list[list[tuple[float, bool]]]:
        """(loss, whether greedy) of the true answers of each row; leaves the context as it was.

        Args:
            hidden: of each prompt's last token [rows, hidden_size].
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
        """(text, tokens) of each row's greedy answer.

        Args:
            hidden: of each prompt's last token [rows, hidden_size].
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
            if asked and not going:  # a pass for the other ranks' sake
                context.forget(states.shape[1])
        texts = [str(self.tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
        return [
            (cut_at_stop(text, question.stop), len(each))
            for text, question, each in zip(texts, questions, ids, strict=True)
        ]

    def _said(self, states: torch.Tensor, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
        """What the model says in each row: as much of the guess as it says too, and the token after that.

        Args:
            states: after each row's last token, and after each token of its guess [rows, columns, hidden_size].
        """
        lengths = [1 + len(guess) for guess in guesses]
        read = torch.cat([states[slot, :length] for slot, length in enumerate(lengths)])
        likeliest = [each.tolist() for each in answer_logits(self.model, read).argmax(-1).split(lengths)]
        return [tokens[: common(guess, tokens) + 1] for guess, tokens in zip(guesses, likeliest, strict=True)]

    def _goes_on(self, row: int, token: int, ids: list[int]) -> bool:
        """Adds a token to an answer, unless it ends it; returns whether more are to come."""
        if token in self.ends:
            return False
        ids.append(token)
        question = self.rows[row][0]
        return len(ids) < question.max_new_tokens and not self._stopped(question.stop, ids)

    def _stopped(self, stop: Sequence[str], ids: list[int]) -> bool:
        # a token is at least a byte, so that a stop string that has just come is within so many
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
    """(nats, fp64; whether it is the likeliest) of each token, from hidden states [tokens, hidden_size].

    Args:
        at_once: the head is called once, however many tokens: where all ranks take it in step.
    """
    chunk = max(1, len(targets)) if at_once else logits_at_once(model)
    wanted = torch.tensor(targets, dtype=torch.long, device=hidden.device)
    losses, greedy = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for states, ids in zip(hidden.split(chunk), wanted.split(chunk), strict=True):
        logits = answer_logits(model, states)
        losses.append(nn.functional.cross_entropy(logits, ids, reduction="none").cpu())
        greedy.append((logits.argmax(-1) == ids).cpu())
    return torch.cat(losses).double(), torch.cat(greedy)
