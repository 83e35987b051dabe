"""Rows as token ids: [begin mark] prompt, answer, end mark; the loss counts the answer and its end mark.

Prompt and answer are tokenized apart and then joined, so that no token spans both: what the model is trained to
continue is exactly what it is given when it generates. A mark that a text spells out (`<s>` opens every Py150
prompt) becomes the tokenizer's mark of that name, as in the published runs.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from codyra_llm.data.stream import Body, Row, Task
from codyra_llm.errors import UserError
from codyra_llm.text import shown


@dataclass(frozen=True)
class Example:
    """One row as ids; `prompt` begins with the tokenizer's begin mark where it has one, `answer` ends with EOS."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def to_bytes(self) -> bytes:
        """What no other example has, for a hash."""
        return b"".join(array("q", [len(ids), *ids]).tobytes() for ids in (self.prompt, self.answer))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where the tokenizer has no end-of-sequence token: no answer could ever end."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, so no answer can end; "
            "set eos_token in its tokenizer_config.json"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up: the tokenizer's own where it has one, else its end mark."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int, body: Body | None = None, where: str = "prompt"
) -> list[int]:
    """Ids of a prompt, with the begin mark; one of more than `max_length` tokens loses part of its body.

    The instruction before the body and the question after it are never cut.

    Raises:
        UserError: a prompt that must be cut has no marked body, or instruction and question alone are longer than
            `max_length` (the message begins with `where`).
    """
    begin = _begin_mark(tokenizer)

    def ids(text: str) -> list[int]:
        return begin + tokenizer(text, add_special_tokens=False)["input_ids"]

    whole = ids(prompt)
    if len(whole) <= max_length:
        return whole
    if body is None:
        raise UserError(
            f"{where}: the prompt has {len(whole)} tokens, more than {max_length}; raise data.max_prompt_length, "
            "or say with `body` in the task file what of it may be cut"
        )
    before, text, after = _split_body(prompt, body, where)

    def cut(size: int) -> list[int]:
        kept = text[:size] if body.keep == "head" else text[len(text) - size :]
        return ids(before + kept + after)

    if len(cut(0)) > max_length:
        raise UserError(
            f"{where}: the prompt without its body has {len(cut(0))} tokens, more than {max_length}; raise "
            "data.max_prompt_length"
        )
    low, high = 0, min(len(text), 32 * max_length)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(cut(middle)) <= max_length else (low, middle - 1)
    return cut(low)


def encode_request(tokenizer: PreTrainedTokenizerBase, text: str, chat_template: bool = True) -> list[int]:
    """Ids of a text as a user's turn in the tokenizer's chat template, if it has one and it is wanted, else as it is.

    A template's ids end with what opens the reply; a text as it is has the begin mark. Nothing is cut.

    Raises:
        UserError: the template fails.
    """
    if not (chat_template and tokenizer.chat_template):
        return encode_prompt(tokenizer, text, sys.maxsize)
    turn = [{"role": "user", "content": text}]
    try:
        return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
    except Exception as error:  # a template is a program, which fails in its own ways
        problem = f"its chat template fails ({type(error).__name__}: {error})"
        raise UserError(f"{tokenizer.name_or_path}: {problem}; set chat_template false") from None


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer and the end mark, never cut."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    max_prompt_length: int,
    max_answer_length: int | None = None,
    body: Body | None = None,
    drop_long_answers: bool = False,
    where: str = "rows",
    numbers: Sequence[int] | None = None,
) -> Iterator[Example]:
    """The rows as examples, one by one; `where` and `numbers` (by default from 1) are what errors call them.

    Raises:
        UserError: an answer with its end mark is longer than `max_answer_length` and is not to be dropped, or a
            prompt cannot be cut to size; the message names the row.
    """
    kept = 0
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        answer = encode_answer(tokenizer, row["answer"])
        if max_answer_length is not None and len(answer) > max_answer_length:
            if drop_long_answers:
                continue
            raise UserError(
                f"{where} row {number}: the answer has {len(answer)} tokens with its end mark, data.max_answer_length "
                f"is {max_answer_length}; raise it, or set data.long_answers: drop"
            )
        prompt = encode_prompt(tokenizer, row["prompt"], max_prompt_length, body, f"{where} row {number}")
        kept += 1
        yield Example(prompt, answer)
    if not kept:
        raise UserError(f"{where}: no answer fits into data.max_answer_length {max_answer_length}; raise it")


def notes_on_tokens(
    task: Task, tokenizer: PreTrainedTokenizerBase, train: Sequence[Example], test: Sequence[Example]
) -> list[str]:
    """What of a task's tokens a user would not expect, a line each: marks twice, answers that come back otherwise."""
    notes = []
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begun := sum(example.prompt[:2] == [bos, bos] for example in train):
        notes.append(f"task {task.name}: {begun} of {len(train)} prompts spell the begin mark, and have it twice")
    if ended := sum(example.answer[-2:] == [eos, eos] for example in train):
        notes.append(f"task {task.name}: {ended} of {len(train)} answers spell the end mark, and have it twice")
    answers = [row["answer"].strip() for row in task.test]
    given = [str(tokenizer.decode(each.answer[:-1], skip_special_tokens=True)).strip() for each in test]
    if lost := [pair for pair in zip(answers, given, strict=True) if pair[0] != pair[1]]:
        notes.append(
            f"task {task.name}: {len(lost)} of {len(test)} test answers are not what the tokenizer gives back "
            f"({lost[0][0][:40]!a} becomes {lost[0][1][:40]!a}): no model can match them to the letter"
        )
    return notes


def _begin_mark(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] where the tokenizer puts one before a text of its own accord (Llama, Gemma), else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _split_body(prompt: str, body: Body, where: str) -> tuple[str, str, str]:
    """(before, body, after); an empty marker means the prompt's own beginning or end."""
    begin = prompt.find(body.start) + len(body.start)
    end = prompt.rfind(body.end) if body.end else len(prompt)
    if body.start not in prompt or end < begin:
        marks = f"{shown(body.start)} and {shown(body.end)}"
        raise UserError(
            f"{where}: the prompt is too long, and has no body between {marks} to cut; "
            "raise data.max_prompt_length or correct `body` in the task file"
        )
    return prompt[:begin], prompt[begin:end], prompt[end:]
