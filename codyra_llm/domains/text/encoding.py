"""Encodes the rows of a plan as token ids and checks that the model can read them."""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from codyra_llm.config import RunConfig
from codyra_llm.data.cache import TokenCache
from codyra_llm.data.chat import ChatTemplate
from codyra_llm.data.stream import Task
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.models.source import Source
from codyra_llm.text import shown


def encode_split(
    config: RunConfig, task: Task, split: str, tokens: TokenCache, template: ChatTemplate | None
) -> Sequence[Example]:
    """Returns the rows of a split (train, test or eval) as examples; eval rows are encoded like training rows.

    Raises:
        UserError: see `encode_rows`.
    """
    data = config.data
    rows = {"train": task.train, "test": task.test, "eval": task.validation}[split]
    longest = data.max_prompt_length or task.spec.max_prompt_length
    if not rows:
        return []
    if task.spec.is_text:
        return tokens.encode_text(rows, length=max(2, longest), pack=split != "test")
    limits: dict[str, Any] = {"max_prompt_length": longest, "body": task.spec.body, "template": template}
    if split == "test":
        limits |= {"learn": "last"}
    else:
        drops = data.long_answers == "drop"
        limits |= {"max_answer_length": data.max_answer_length, "drop_long_answers": drops, "learn": task.spec.learn}
    where = task.places.get(split, f"{Path(config.data_dir) / task.name}/{split}")
    return tokens.encode_rows(rows, where, task.row_numbers.get(split), **limits)


def check_examples(task: Task, splits: Mapping[str, Sequence[Example]], source: Source, added: int) -> None:
    """Raises UserError if a row is longer than the model's context or has a token outside its vocabulary.

    Args:
        splits: the task's examples, by split.
        added: number of positions that the method places before each row.
    """
    longest = added + max(len(example) for example in chain.from_iterable(splits.values()))
    if longest > source.context_length:
        of_prompts = f", {added} of them the method's prompts" if added else ""
        raise UserError(
            f"task {task.name}: the longest row has {longest} tokens{of_prompts}, the context length is "
            f"{source.context_length}; lower {'those prompts, ' if added else ''}data.max_prompt_length or "
            "data.max_answer_length"
        )
    for split, examples in splits.items():
        _check_ids(task, split, examples, source)


def _check_ids(
    task: Task,
    split: str,
    examples: Sequence[Example],
    source: Source,
) -> None:
    """Raises UserError if a row has a token without a row in the embedding; padding is masked and is not checked."""
    size = getattr(source.config.get_text_config(), "vocab_size", None) or sys.maxsize
    numbers = task.row_numbers.get(split) or range(1, len(examples) + 1)
    for place, example in enumerate(examples):
        largest = max(chain(example.prompt, example.answer))
        if largest >= size:
            number = f" row {numbers[place]}" if len(numbers) == len(examples) else ""  # none was dropped
            token = f"token {largest} ({shown(source.tokenizer.convert_ids_to_tokens(largest))})"
            raise UserError(
                f"task {task.name} {split}{number}: {token} is not among the {size} of the model's vocabulary; "
                "give the tokenizer that belongs to the model"
            )
