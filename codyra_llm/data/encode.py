"""Rows as token ids: [BOS] prompt, answer, EOS; the loss counts the answer and its EOS token.

Prompt and answer are tokenized separately and then joined, so that no token spans both: the model is trained to
continue exactly the ids that it reads when it generates. A special token that a text spells out (`<s>` opens every
Py150 prompt) becomes the tokenizer's token of that name, as in the published runs.

With a chat template, a row is the conversation that the template renders (data/chat.py), with the template's special
tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from codyra_llm.data.chat import ChatTemplate, Learn, as_messages, encode_conversation
from codyra_llm.data.ids import begin_mark, text_ids
from codyra_llm.data.raw_text import packed, windows
from codyra_llm.data.rows import Row
from codyra_llm.data.stream import Body, Task
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.text import shown


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if the tokenizer has no EOS token, since no answer could ever end."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token, so no answer can end; "
            "set eos_token in its tokenizer_config.json"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the padding id: the tokenizer's padding token if it has one, else its EOS token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int, body: Body | None = None, where: str = "prompt"
) -> list[int]:
    """Returns the ids of a prompt, with the BOS token; a prompt longer than `max_length` loses part of its body.

    Raises:
        UserError: see `fit_prompt`.
    """
    return fit_prompt(prompt, _plain(tokenizer), max_length, body, where)[1]


def fit_prompt(
    prompt: str, ids: Callable[[str], list[int]], max_length: int, body: Body | None = None, where: str = "prompt"
) -> tuple[str, list[int]]:
    """Returns (text, ids) of the prompt, with its body truncated if `ids` returns more than `max_length` ids for it.

    The instruction before the body and the question after it are never truncated.

    Raises:
        UserError: a prompt that is too long has no marked body, or instruction and question alone are longer than
            `max_length` (the message begins with `where`).
    """
    whole = ids(prompt)
    if len(whole) <= max_length:
        return prompt, whole
    if body is None:
        raise UserError(
            f"{where}: the prompt has {len(whole)} tokens, more than {max_length}; raise data.max_prompt_length, "
            "or say with `body` in the task file what of it may be cut"
        )
    before, text, after = _split_body(prompt, body, where)

    def cut(size: int) -> str:
        return before + (text[:size] if body.keep == "head" else text[len(text) - size :]) + after

    if (shortest := len(ids(cut(0)))) > max_length:
        raise UserError(
            f"{where}: the prompt without its body has {shortest} tokens, more than {max_length}; raise "
            "data.max_prompt_length"
        )
    low, high = 0, min(len(text), 32 * max_length)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(ids(cut(middle))) <= max_length else (low, middle - 1)
    return cut(low), ids(cut(low))


def encode_request(tokenizer: PreTrainedTokenizerBase, text: str, template: ChatTemplate | None) -> list[int]:
    """Returns the ids of a text as a user's turn, up to the beginning of the reply; without a template, as it is.

    Raises:
        UserError: the template fails.
    """
    return template.prompt(tokenizer, as_messages(text)) if template else _plain(tokenizer)(text)


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Returns the ids of an answer and the EOS token, never truncated."""
    return [*text_ids(tokenizer, answer), tokenizer.eos_token_id]


def encode_row(
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    max_prompt_length: int,
    body: Body | None = None,
    template: ChatTemplate | None = None,
    learn: Learn = "all",
    where: str = "row",
) -> Example:
    """Converts a row to an example; in a conversation, all before the first learned turn is the prompt.

    Raises:
        UserError: a prompt cannot be truncated to size; or a conversation has several turns, and there is no template.
    """
    messages = row.get("messages") or as_messages(row["prompt"], row["answer"])
    if template is None:
        if len(messages) > 2:
            raise UserError(
                f"{where}: a conversation of {len(messages)} messages needs a chat template; set data.chat_template to "
                "auto, which is the model's own, or to the path of one"
            )
        text = messages[0]["content"]
        fitted, prompt = fit_prompt(text, _plain(tokenizer), max_prompt_length, body, where)
        return Example(prompt, encode_answer(tokenizer, messages[1]["content"]), cut=fitted != text)
    cut, turns = False, sum(message["role"] == "assistant" for message in messages)
    if learn == "last" or turns == 1:
        before, last = messages[:-2], messages[-2]["content"]

        def ids(text: str) -> list[int]:
            return template.prompt(tokenizer, [*before, *as_messages(text)])

        fitted, _ = fit_prompt(last, ids, max_prompt_length, body, where)
        cut = fitted != last
        messages = [*before, *as_messages(fitted), messages[-1]]
    example = Example(*encode_conversation(tokenizer, template, messages, learn), cut)
    if len(example.prompt) > max_prompt_length:
        raise UserError(
            f"{where}: {len(example.prompt)} tokens before the first turn that is learned, more than "
            f"{max_prompt_length}; raise data.max_prompt_length"
        )
    return example


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    max_prompt_length: int,
    max_answer_length: int | None = None,
    drop_long_answers: bool = False,
    where: str = "rows",
    numbers: Sequence[int] | None = None,
    **how: Any,
) -> Iterator[Example]:
    """Yields the rows as examples, one by one.

    Args:
        tokenizer: the tokenizer.
        rows: the rows.
        max_prompt_length: the most tokens of a prompt.
        max_answer_length: the most tokens of an answer, including the EOS token.
        drop_long_answers: whether rows with longer answers are dropped.
        where: the name of the rows in error messages.
        numbers: the number of each row in error messages, by default from 1.
        how: `body`, `template` and `learn` of `encode_row`.

    Raises:
        UserError: an answer is longer than `max_answer_length` and is not to be dropped, or no row is left; see also
            `encode_row`. The message names the row.
    """
    kept = 0
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        example = encode_row(tokenizer, row, max_prompt_length, where=f"{where} row {number}", **how)
        if max_answer_length is not None and len(example.answer) > max_answer_length:
            if drop_long_answers:
                continue
            raise UserError(
                f"{where} row {number}: the answer has {len(example.answer)} tokens with EOS, "
                f"data.max_answer_length is {max_answer_length}; raise it, or set data.long_answers: drop"
            )
        kept += 1
        yield example
    if not kept:
        raise UserError(f"{where}: no answer fits into data.max_answer_length {max_answer_length}; raise it")


def encode_text(tokenizer: PreTrainedTokenizerBase, rows: list[Row], length: int, pack: bool) -> Iterator[Example]:
    """Yields documents as examples of at most `length` tokens: packed, for training, or one by one, for scoring."""
    texts = [row["answer"] for row in rows]
    if pack:
        yield from (Example(*block) for block in packed(tokenizer, texts, length))
    else:
        yield from (Example(*window) for text in texts for window in windows(tokenizer, text, length))


def notes_on_tokens(
    task: Task, tokenizer: PreTrainedTokenizerBase, train: Sequence[Example], test: Sequence[Example]
) -> list[str]:
    """Returns remarks on a task's tokens, one line each: doubled BOS or EOS tokens, answers changed by decoding."""
    notes: list[str] = []
    if task.spec.is_text:
        return notes
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begun := sum(example.prompt[:2] == [bos, bos] for example in train):
        notes.append(f"task {task.name}: {begun} of {len(train)} prompts spell the BOS token, so they have it twice")
    if ended := sum(example.answer[-2:] == [eos, eos] for example in train):
        notes.append(f"task {task.name}: {ended} of {len(train)} answers spell the EOS token, so they have it twice")
    answers = [row["answer"].strip() for row in task.test]
    given = [str(tokenizer.decode(each.answer[:-1], skip_special_tokens=True)).strip() for each in test]
    if lost := [pair for pair in zip(answers, given, strict=True) if pair[0] != pair[1]]:
        notes.append(
            f"task {task.name}: {len(lost)} of {len(test)} test answers are not what the tokenizer gives back "
            f"({lost[0][0][:40]!a} becomes {lost[0][1][:40]!a}): no model can match them to the letter"
        )
    return notes


def _plain(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Returns a function that encodes a text, without template, after the BOS token."""
    begin = begin_mark(tokenizer)
    return lambda text: begin + text_ids(tokenizer, text)


def _split_body(prompt: str, body: Body, where: str) -> tuple[str, str, str]:
    """Returns (before, body, after); an empty marker means the beginning or the end of the prompt."""
    begin = prompt.find(body.start) + len(body.start)
    end = prompt.rfind(body.end) if body.end else len(prompt)
    if body.start not in prompt or end < begin:
        marks = f"{shown(body.start)} and {shown(body.end)}"
        raise UserError(
            f"{where}: the prompt is too long, and has no body between {marks} to cut; "
            "raise data.max_prompt_length or correct `body` in the task file"
        )
    return prompt[:begin], prompt[begin:end], prompt[end:]
