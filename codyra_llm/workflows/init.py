"""Creates the folder of a user's own stream, with a task file, rows and a configuration, from tables of data."""

import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from codyra_llm.data import raw_text
from codyra_llm.data.chat import find_chat_template
from codyra_llm.data.rows import Row
from codyra_llm.data.tables import is_raw_text, read_table, text_rows, to_rows
from codyra_llm.errors import UserError
from codyra_llm.files import plain_name, replace_folder, write_text
from codyra_llm.models.source import open_source

SHORT_ANSWER = 40  # characters; longer answers seldom match exactly
MOST_SCORED = 200  # rows of a task's test split
ROWS_OF_A_STEP = 32
LONGEST_BLOCK, SHORTEST_BLOCK, CHARACTERS_OF_A_TOKEN = 1024, 32, 5

TASK_HEAD = """\
# The tasks of this stream. scorer: accuracy, f1, rouge_l, bleu, chrf, json, regex:PATTERN, bits_per_byte (raw text) and
# others; stop: strings that end an answer; epochs: passes over the rows. Tasks are learned in the order of this file.
"""
CONFIG = """\
# codyra train --config {path}
# What is left out has its default; `codyra train --help` explains every setting. A run that is interrupted resumes when
# the command is given again; `--dry_run` shows what would be done.
task_file: {task_file}
data_dir: {data_dir}
output_dir: {output_dir}  # the model, its ledger of updates, results, plots and log
model:
  name_or_path: {model}  # hub id, HF folder or .gguf file
  # dtype: bfloat16  # of the frozen base, on a GPU
  # quantization: nf4  # the base in 4 bits
data:
  chat_template: {chat_template}  # auto: the model's own; none: prompts as they are
train:
  global_batch_size: {batch}  # rows of an optimizer step, however many ranks there are
  per_device_train_batch_size: {micro}  # the most rows of one forward pass
  # validation: 0.05  # share of the training rows to validate on; then early_stopping: 3, keep_best: true
# deepspeed: ds_configs/zero2.json  # of several GPUs
# general: {{suites: [general]}}  # measures general ability after each task as well
"""


def begin_stream(
    folder: Path, files: Mapping[str, Path], columns: Mapping[str, str] | None, test: float, model: str
) -> str:
    """Writes the folder; returns a message for the user.

    Args:
        folder: the folder to write, new or empty.
        files: task -> table.
        columns: names of the columns, as in a task file.
        test: share of the rows to hold out.
        model: name of the model to train.

    Raises:
        UserError: the folder is not empty, or a table cannot be read or has too few rows.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already exists; give a new or empty folder")
    if not 0 < test < 1:
        raise UserError(f"--test is {test:g}; it must be between 0 and 1")
    said: list[str] = []
    specs, splits, sizes = {}, {}, []
    for task, file in files.items():
        plain_name(task, "the task name")
        rows, values, is_text = _read(file, columns, said)
        splits[task] = _split(task, file, rows, values, test)
        specs[task] = _spec(rows, columns, is_text)
        length = specs[task].get("max_prompt_length")
        sizes.append(_blocks(rows, length) if length else len(splits[task]["train"]))
    config = _config(folder, model, min(sizes), _has_conversations(splits))
    with replace_folder(folder) as scratch:
        for task, split in splits.items():
            (scratch / "data" / task).mkdir(parents=True)
            for name, chosen in split.items():
                lines = "".join(json.dumps(value, ensure_ascii=False, default=str) + "\n" for value in chosen)
                write_text(scratch / "data" / task / f"{name}.jsonl", lines)
        tasks = yaml.safe_dump({"name": folder.name, "tasks": specs}, sort_keys=False, allow_unicode=True)
        write_text(scratch / "tasks.yaml", TASK_HEAD + tasks)
        write_text(scratch / "config.yaml", config)
    counts = [
        f"{task}: {len(split['train'])} rows to learn, {len(split['test'])} to score" for task, split in splits.items()
    ]
    return "\n".join([*said, *counts, f"begin with: codyra train --config {folder / 'config.yaml'} --dry_run"])


def _has_conversations(splits: Mapping[str, Mapping[str, list[Any]]]) -> bool:
    """True if a table contains conversations, which need a chat template."""
    return any("messages" in row or "conversations" in row for split in splits.values() for row in split["train"])


def _read(file: Path, columns: Mapping[str, str] | None, said: list[str]) -> tuple[list[Row], list[Any], bool]:
    """Reads a table; returns (checked rows, unchanged table, whether it is raw text)."""
    values = read_table(file)
    first = values[0] if isinstance(values, list) and values and isinstance(values[0], dict) else {}
    if set(columns or ()) == {"text"} or (not columns and is_raw_text(first)):
        return text_rows(values, str(file), (columns or {}).get("text", "text"), said.append), values, True
    return to_rows(values, str(file), columns, said.append), values, False


def _split(task: str, file: Path, rows: list[Row], values: list[Any], test: float) -> dict[str, list[Any]]:
    """Splits the table's rows into train and test; no prompt is in both."""
    keys = list(dict.fromkeys(row["prompt"] or row["answer"] for row in rows))
    size = min(round(test * len(keys)), MOST_SCORED)
    if not 0 < size < len(keys):
        raise UserError(
            f"{file}: {len(keys)} different prompts are too few to hold {test:g} of them out for task {task}"
        )
    held_out = set(random.Random(task).sample(keys, size))
    split: dict[str, list[Any]] = {"train": [], "test": []}
    for row, value in zip(rows, values, strict=True):
        split["test" if (row["prompt"] or row["answer"]) in held_out else "train"].append(value)
    return split


def _spec(rows: list[Row], columns: Mapping[str, str] | None, is_text: bool) -> dict[str, Any]:
    """Returns a task's entry in the task file, chosen by the form of its answers."""
    spec: dict[str, Any] = {}
    if is_text:
        length = LONGEST_BLOCK
        while length > SHORTEST_BLOCK and _blocks(rows, length) < 4 * ROWS_OF_A_STEP:
            length //= 2
        spec = {"scorer": raw_text.SCORER, "max_prompt_length": length, "epochs": 1}
    else:
        longest = max(len(row["answer"]) for row in rows)
        is_short = statistics.median(len(row["answer"]) for row in rows) <= SHORT_ANSWER
        # half a token per character is more than most tokenizers need
        spec = {
            "scorer": "accuracy" if is_short else "rouge_l",
            "max_new_tokens": min(512, 8 + longest // 2),
            "epochs": 3,
        }
    return {**spec, **({"columns": dict(columns)} if columns else {})}


def _blocks(rows: list[Row], length: int) -> int:
    """Estimates the number of blocks of `length` tokens in raw text."""
    return sum(len(row["answer"]) for row in rows) // (CHARACTERS_OF_A_TOKEN * length)


def _config(folder: Path, model: str, rows: int, conversations: bool) -> str:
    """Returns a configuration for tasks of at least `rows` rows, as YAML with comments."""
    tokenizer = open_source(model).tokenizer
    if conversations:
        find_chat_template(tokenizer, "auto")  # raises UserError if there is none
    batch = ROWS_OF_A_STEP
    while batch > 1 and rows < 4 * batch:
        batch //= 2
    quoted = {
        "task_file": str(folder / "tasks.yaml"),
        "data_dir": str(folder / "data"),
        "output_dir": f"runs/{folder.name}",
        "model": model,
    }
    return CONFIG.format(
        path=folder / "config.yaml",
        chat_template="auto" if tokenizer.chat_template else "none",
        batch=batch,
        micro=min(batch, 4),
        **{name: json.dumps(text, ensure_ascii=False) for name, text in quoted.items()},
    )
