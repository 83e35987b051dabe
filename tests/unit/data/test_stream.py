"""Task files and streams."""

import json
from pathlib import Path

import pytest
import yaml

from codyra_llm import TaskStream
from codyra_llm.data.stream import TaskSpec, read_task_file
from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import SCORERS
from tests.conftest import REPOSITORY

TRACE = REPOSITORY / "tasks" / "trace" / "trace.yaml"
SAMPLE = REPOSITORY / "tasks" / "trace" / "sample"


def test_trace_is_there_in_both_orders() -> None:
    specs, orders, _ = read_task_file(TRACE)
    assert len(specs) == 8
    assert all(sorted(orders[name]) == sorted(specs) for name in ("order1", "order2"))
    assert {spec.scorer for spec in specs.values()} <= set(SCORERS)
    stream = TaskStream.load(TRACE, SAMPLE, "order2")
    assert stream.names == orders["order2"]
    assert all(len(task.train) == 64 and len(task.files["train"]) == 64 for task in stream)


def test_a_limit_takes_the_same_rows_every_time() -> None:
    first, second = (TaskStream.load(TRACE, SAMPLE, ["FOMC"], 10, 5).tasks[0] for _ in range(2))
    assert (len(first.train), len(first.test)) == (10, 5)
    assert first.train == second.train


def test_rows_from_memory() -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}]
    stream = TaskStream.from_rows({"sums": {"train": rows, "test": rows}}, {"sums": TaskSpec("numeric")})
    assert [task.spec.scorer for task in stream] == ["numeric"]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("order9", '"order9" is neither an order nor a task'),
        (["FOMC", "Nope"], 'unknown task "Nope".*C-STANCE, FOMC'),
        (["FOMC", "FOMC"], '"FOMC" is listed twice'),
        ([], "no task"),
    ],
)
def test_orders_that_make_no_sense(order: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskStream.load(TRACE, SAMPLE, order)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"scorer": "choice", "stops": []}, 'task mine: unknown key "stops"'),
        ({"scorer": "choice", "epochs": "many"}, "task mine: epochs: .* found 'many'"),
        ({"max_new_tokens": 3}, "task mine: scorer: "),
        (None, "task mine: an entry is a mapping like {scorer: accuracy}, found None"),
        ({"scorer": "choice", 1: 2, "a": 3}, 'task mine: unknown key "1"'),
        ({"scorer": "choice", "epochs": 0}, "task mine: epochs: .*greater than 0, found 0"),
        ({"scorer": "choice", "epochs": float("nan")}, "task mine: epochs: .* found nan"),
        ({"scorer": "choice", "epochs": float("inf")}, "task mine: epochs: .* found inf"),
        ({"scorer": "choice", "epochs": True}, "task mine: epochs: .* found True"),
        ({"scorer": "choice", "max_new_tokens": 0}, "task mine: max_new_tokens: .* found 0"),
        ({"scorer": "choice", "max_new_tokens": True}, "task mine: max_new_tokens: .* found True"),
        ({"scorer": "choice", "max_prompt_length": -1}, "task mine: max_prompt_length: .* found -1"),
        ({"scorer": "choice", "stop": ["\n", ""]}, "task mine: stop.1: .* found ''"),
        ({"scorer": "choice", "body": {"begin": "x"}}, "task mine: body.begin: "),
    ],
)
def test_task_entries_that_make_no_sense(tmp_path: Path, entry: object, message: str) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": {"mine": entry}}))
    with pytest.raises(UserError, match=message):
        read_task_file(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[FOMC]", 'a task file has a mapping "tasks"'),
        ("tasks: {../up: {scorer: choice}}", 'the task name "../up" cannot name a folder'),
        ("tasks: {..: {scorer: choice}}", 'the task name ".." cannot name a folder'),
        ("tasks: {'a\\b': {scorer: choice}}", "cannot name a folder"),
        ("tasks: {null: {scorer: choice}}", "the task name None is not text; put it in quotes"),
        ("tasks: {A: {scorer: choice}, A: {scorer: sari}}", 'the key "A" is listed twice'),
        (
            "tasks: {A: {scorer: choice}}\norders: [A]",
            "orders is a mapping of names to lists of task names, found [",
        ),
        ("tasks: {A: {scorer: choice}}\norders: {x: null}", "orders: x must be a list of task names, found None"),
        ("tasks: {A: {scorer: choice}}\norders: {A: A}", "orders: A must be a list of task names, found 'A'"),
        ("tasks: {A: {scorer: choice}}\norders: {x: [1]}", "orders: x must be a list of task names, found [1]"),
        ("tasks: {A: {scorer: choice}}\norders: {1: [A]}", "orders: the name 1 is not text"),
        ("version: 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("[" * 3000, "nested too deeply; task_file is a YAML file"),
    ],
)
def test_task_files_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_task_file(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_a_spec_that_cannot_work_is_refused_in_memory_too() -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        TaskSpec("choice", max_new_tokens=0)


def test_a_stream_of_ones_own_needs_two_files_and_no_code(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("tasks:\n  mine:\n    scorer: accuracy\n")
    (tmp_path / "mine").mkdir()
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}.json").write_text(json.dumps([{"prompt": "p", "answer": "a"}]))
    assert TaskStream.load(tmp_path / "tasks.yaml", tmp_path).names == ["mine"]


def test_rows_from_memory_are_checked() -> None:
    good = [{"prompt": "p", "answer": "a"}]
    with pytest.raises(UserError, match='task sums train row 2: no "answer"'):
        TaskStream.from_rows({"sums": {"train": [*good, {"prompt": "p"}], "test": good}})
    with pytest.raises(UserError, match="task sums test: holds null, not a list of rows"):
        TaskStream.from_rows({"sums": {"train": good}})


def test_a_limited_split_keeps_the_row_numbers_of_its_file() -> None:
    task = TaskStream.load(TRACE, SAMPLE, ["FOMC"], 10, 5).tasks[0]
    rows = json.loads((SAMPLE / "FOMC" / "train.json").read_text(encoding="utf-8"))
    assert [rows[number - 1] for number in task.row_numbers["train"]] == task.train
    assert task.row_numbers["train"] != list(range(1, 11))
