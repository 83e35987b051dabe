"""`codyra init`: the files that it writes can be run, and after an error no files are left."""

import json
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.config import load_config
from codyra_llm.data.stream import TaskStream
from codyra_llm.errors import UserError
from codyra_llm.workflows.init import begin_stream

ROWS = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(40)]


def table(folder: Path, rows: Any, name: str = "sums.json") -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_what_is_written_is_a_stream(tiny_folder: Path, tmp_path: Path) -> None:
    long = [{"instruction": f"Say {n}.", "input": "", "output": "word " * 20} for n in range(40)]
    files = {"sums": table(tmp_path, [*ROWS, *ROWS[:5]]), "say": table(tmp_path, long, "say.json")}
    said = begin_stream(tmp_path / "mine", files, None, 0.25, str(tiny_folder))
    assert "sums: " in said
    config = load_config(tmp_path / "mine" / "config.yaml")
    assert config.data.chat_template == "none"
    assert config.train.global_batch_size == 4
    stream = TaskStream.load(config.task_file, config.data_dir)
    assert [(task.name, task.spec.scorer) for task in stream] == [("sums", "accuracy"), ("say", "rouge_l")]
    for task in stream:
        assert len(task.test) >= 10
        assert not {row["prompt"] for row in task.train} & {row["prompt"] for row in task.test}
    assert stream.tasks[0].spec.max_new_tokens < 16 < stream.tasks[1].spec.max_new_tokens
    with pytest.raises(UserError, match="mine: already exists; give a new or empty folder"):
        begin_stream(tmp_path / "mine", files, None, 0.25, str(tiny_folder))


@pytest.mark.parametrize(
    ("rows", "test", "problem"),
    [
        (ROWS[:1], 0.5, "1 different prompts are too few to hold 0.5 of them out"),
        (ROWS, 0.001, "40 different prompts are too few"),
        (ROWS, 1.0, "--test is 1; it must be between 0 and 1"),
        ([{"prompt": "x"}], 0.5, 'row 1: no "answer"'),
        ([{"text": "x", "label": "y"}], 0.5, "the task file says them: columns"),
        ([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}] * 2, 0.5, "too few"),
    ],
)
def test_mistakes_leave_nothing(tiny_folder: Path, tmp_path: Path, rows: Any, test: float, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        begin_stream(tmp_path / "mine", {"sums": table(tmp_path, rows)}, None, test, str(tiny_folder))
    assert [path.name for path in tmp_path.iterdir()] == ["sums.json"]


def test_conversations_need_a_template(tiny_folder: Path, tmp_path: Path) -> None:
    talks = [
        {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "y"}]} for n in range(20)
    ]
    with pytest.raises(UserError, match="has no chat template; give the path of one"):
        begin_stream(tmp_path / "mine", {"talks": table(tmp_path, talks)}, None, 0.1, str(tiny_folder))
