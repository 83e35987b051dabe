"""Tokenizing is shared between ranks."""

import json
from collections import Counter
from pathlib import Path

import pytest

from codyra_llm.config import load_config
from codyra_llm.data.stream import TaskStream
from tests.conftest import SAMPLE
from tests.distributed.forked import run_forked


def test_two_ranks_tokenize_once_in_all(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))
    starts = [tmp_path / "first", tmp_path / "second"]
    for folder in starts:
        folder.mkdir()
    statuses = run_forked(
        "tests.distributed.tokens_worker", [{"model": str(tiny_folder), "output": str(folder)} for folder in starts]
    )
    assert statuses == [[0, 0], [0, 0]], (starts[0] / "log").read_text()[-4000:]
    first, second = ([json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)] for folder in starts)
    assert len({rank["run"] for rank in [*first, *second]}) == 1, "all have the same ids"
    stream = TaskStream.load(load_config(None, {}).task_file, SAMPLE)
    answers = Counter(row["answer"] for task in stream for row in [*task.train, *task.test])
    tokenized = Counter(text for rank in first for text in rank["texts"])
    assert {answer: tokenized[answer] for answer in answers} == answers
    assert not any(rank["texts"] for rank in second)
