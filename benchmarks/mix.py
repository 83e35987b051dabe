"""Data of the benchmarks: the same number of rows of each task of a TRACE folder, as examples of at most 512 tokens."""

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
    """Returns `rows` rows of each task, in the file's order; the ends of longer documents and answers are cut off."""
    found = []
    for task in TaskStream.load(DEFAULT_TASK_FILE, data_dir, max_train_examples=rows, max_test_examples=rows):
        encoded = encode_rows(tokenizer, getattr(task, split), PROMPT, body=task.spec.body)
        found.append((task, [Example(example.prompt, example.answer[:ANSWER]) for example in encoded]))
    return found


def epoch_tokens(batches: GlobalBatches) -> tuple[int, int]:
    """Returns (tokens, tokens with padding) of an epoch."""
    steps = range(batches.total_steps)
    cells = sum(batch.input_ids.numel() for step in steps for batch in batches.micro_batches(step))
    return sum(map(batches.tokens, steps)), cells
