"""Any configuration, command line, task file and rows give a correct result or one line."""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from codyra_llm.config import RunConfig, config_fields, load_config, parse_command_line, to_yaml
from codyra_llm.data.stream import TaskStream
from codyra_llm.distributed.ranks import start
from codyra_llm.evaluation.scorers import SCORERS, score_rows
from codyra_llm.planning.run_plan import plan_run
from tests.e2e.test_run import tiny_config
from tests.fuzz.outcome import outcome, thorough, tree
from tests.fuzz.strategies import HOSTILE, NUMBERS, damaged, files_like

SETTINGS = yaml.safe_load(to_yaml(RunConfig()))
TASKS = {
    "name": "two",
    "version": 1,
    "tasks": {
        "one": {"scorer": "accuracy", "max_new_tokens": 4, "stop": ["\n"], "epochs": 1, "max_prompt_length": 64},
        "two": {"scorer": "rouge_l", "body": {"start": "a", "end": "b", "keep": "tail"}},
    },
    "orders": {"order1": ["one", "two"], "back": ["two", "one"]},
}
ROWS = [{"prompt": f"Question {number}?", "answer": f" {word}"} for number, word in enumerate(["red", "blue", "Grün"])]


@thorough
@given(files_like(SETTINGS))
def test_a_configuration_file(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_bytes(content)
        config, _ = outcome(lambda: load_config(file))
        if config:
            file.write_text(to_yaml(config), encoding="utf-8")
            assert load_config(file) == config


@thorough
@given(
    st.lists(
        st.tuples(
            st.sampled_from([name for name, _ in config_fields()]),
            st.sampled_from(HOSTILE) | st.sampled_from(NUMBERS).map(str) | st.text(max_size=8),
        ),
        max_size=3,
    )
)
def test_a_command_line(options: list[tuple[str, str]]) -> None:
    arguments = [text for name, value in options for text in (f"--{name}", value)]
    config, _ = outcome(lambda: parse_command_line(arguments, ""))
    assert config is None or dataclasses.is_dataclass(config)


def write_data(folder: Path) -> None:
    for task in ("one", "two"):
        (folder / task).mkdir()
        for split in ("train", "test"):
            (folder / task / f"{split}.json").write_text(json.dumps(ROWS), encoding="utf-8")


@thorough
@given(files_like(TASKS))
def test_a_task_file(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        data, file = Path(folder) / "data", Path(folder) / "tasks.yaml"
        data.mkdir()
        write_data(data)
        file.write_bytes(content)
        stream, _ = outcome(lambda: TaskStream.load(file, data))
        assert stream is None or all(task.name in ("one", "two") for task in stream)


@thorough
@given(split=st.sampled_from(["train", "test"]), content=files_like(ROWS))
def test_rows(split: str, content: bytes, tiny_folder: Path) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        patch.setenv("CODYRA_CACHE", str(root / "cache"))
        (root / "data").mkdir()
        write_data(root / "data")
        (root / "data" / "one" / f"{split}.json").write_bytes(content)
        (root / "tasks.yaml").write_text(json.dumps(TASKS))
        before = tree(root / "data")
        overrides = {"data_dir": str(root / "data"), "task_file": str(root / "tasks.yaml"), "order": "order1"}
        config = tiny_config(tiny_folder, root / "run", **overrides)
        plan, _ = outcome(lambda: plan_run(config, start()))
        assert tree(root / "data") == before and not (root / "run").exists()
        if plan:
            name = plan.name(config)
            assert plan_run(config, start()).name(config) == name


@thorough
@given(
    st.sampled_from(sorted(SCORERS)),
    st.text(max_size=30) | st.sampled_from(HOSTILE),
    st.text(max_size=30) | st.sampled_from(HOSTILE),
)
def test_a_prediction_and_a_reference(scorer: str, prediction: str, reference: str) -> None:
    row = {"prompt": "p", "prediction": prediction, "reference": reference}
    scored, _ = outcome(lambda: score_rows(scorer, [row]))
    for value in scored["totals"].values() if scored else ():
        assert 0 <= value <= 100


@thorough
@given(damaged({"rows": ROWS}))
def test_rows_in_memory(content: object) -> None:
    rows = content.get("rows") if isinstance(content, dict) else content
    outcome(lambda: TaskStream.from_rows({"one": {"train": rows, "test": ROWS}}))  # type: ignore[dict-item]
