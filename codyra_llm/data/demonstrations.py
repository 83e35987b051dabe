"""In-context learning: training rows with their answers, placed before the prompt of each test row."""

import dataclasses
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from codyra_llm.data.chat import ChatTemplate, as_messages
from codyra_llm.data.ids import begin_mark, text_ids
from codyra_llm.data.rows import Row
from codyra_llm.data.stream import Task
from codyra_llm.example import Example

SEPARATOR = "\n\n"  # after each demonstration, where there is no chat template


def with_demonstrations(
    task: Task,
    examples: Sequence[Example],
    count: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    length: int,
) -> tuple[list[Example], str | None]:
    """Places the same `count` training rows before each test row; returns the rows and a note, if some have no room.

    The training rows are drawn by the seed. In a chat template they are earlier turns. A test row gets the first of
    them, as many as keep its prompt within `length` tokens; a row with a truncated prompt gets none.
    """
    drawn = random.Random(f"{seed}/{task.name}/demonstrations").sample(task.train, min(count, len(task.train)))
    conversations = [row.get("messages") or as_messages(row["prompt"], row["answer"]) for row in drawn]
    pieces = [[*(message["content"] for message in each), SEPARATOR] for each in conversations]
    solved = [[token for text in each for token in text_ids(tokenizer, text)] for each in pieces]
    begin = begin_mark(tokenizer)

    def prompt(row: Row, example: Example, number: int) -> list[int]:
        if template:
            own = row["messages"][:-1] if row.get("messages") else as_messages(row["prompt"])
            return template.prompt(tokenizer, [*(m for each in conversations[:number] for m in each), *own])
        return begin + [token for each in solved[:number] for token in each] + example.prompt[len(begin) :]

    found, short = [], 0
    for row, example in zip(task.test, examples, strict=True):
        tried = ((n, prompt(row, example, n)) for n in range(0 if example.cut else len(drawn), 0, -1))
        number, ids = next((each for each in tried if len(each[1]) <= length), (0, example.prompt))
        short += number < len(drawn)
        found.append(dataclasses.replace(example, prompt=ids))
    note = f"task {task.name}: {short} of {len(examples)} test prompts have no room for {len(drawn)} demonstrations"
    return found, note if short else None
