"""The benchmarks' data: rows of all tasks of a TRACE folder in equal shares, as examples of at most 512 tokens."""

from transformers import PreTrainedTokenizerBase

from codyra_llm.config import DEFAULT_TASK_FILE
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.encode import encode_rows
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.example import Example

PROMPT, ANSWER = 384, 128


def examples(
    tokenizer: PreTrainedTokenizerBase, data_dir: str, rows: int, split: str
) -> list[tuple[Task, list[Example]]]:
    """`rows` rows of each task, in the file's order; a longer document loses its end, and so does a longer answer."""
    found = []
    for task in TaskStream.load(DEFAULT_TASK_FILE, data_dir, max_train_examples=rows, max_test_examples=rows):
        encoded = encode_rows(tokenizer, getattr(task, split), PROMPT, body=task.spec.body)
        found.append((task, [Example(example.prompt, example.answer[:ANSWER]) for example in encoded]))
    return found


def epoch_tokens(batches: GlobalBatches) -> tuple[int, int]:
    """(tokens, tokens and padding) of an epoch."""
    steps = range(batches.total_steps)
    cells = sum(batch.input_ids.numel() for step in steps for batch in batches.micro_batches(step))
    return sum(map(batches.tokens, steps)), cells
