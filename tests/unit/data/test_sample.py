"""The built-in sample: reproducible, well-formed, and fair (no test row was seen in training)."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from codyra_llm.data.prepare import SPLITS, prepare
from codyra_llm.data.tables import read_table, to_rows

TRACE = Path(__file__).parents[3] / "tasks" / "trace"
TASKS = yaml.safe_load((TRACE / "trace.yaml").read_text(encoding="utf-8"))["tasks"]
Splits = dict[str, list[dict[str, str]]]


def rows_of(path: Path) -> list[dict[str, str]]:
    return to_rows(read_table(path), str(path), None)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_sample", TRACE / "generate_sample.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def splits(task: str) -> Splits:
    return {split: rows_of(TRACE / "sample" / task / f"{split}.json") for split in SPLITS}


def test_files_are_what_the_generator_writes(generator: ModuleType, tmp_path: Path) -> None:
    generator.write_sample(tmp_path)
    shipped = {p.relative_to(TRACE / "sample"): p.read_bytes() for p in (TRACE / "sample").rglob("*.json")}
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.json")} == shipped
    assert len(shipped) == 24


def test_sizes_and_no_prompt_twice(splits: Splits) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 64, "eval": 8, "test": 16}
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(set(prompts)) == 88


def test_prompts_carry_the_markers_of_the_task_file(task: str, splits: Splits) -> None:
    body = TASKS[task]["body"]
    for rows in splits.values():
        for row in rows:
            start, end = row["prompt"].find(body["start"]), row["prompt"].rfind(body["end"])
            assert start >= 0
            assert start + len(body["start"]) < end
            # two tasks have one more field (target, choices) between the body and the answer
            if body["end"] and task not in ("C-STANCE", "ScienceQA"):
                assert row["prompt"].endswith(body["end"])


@pytest.mark.parametrize("choice", ["C-STANCE", "FOMC", "ScienceQA"])
def test_choices_are_balanced(choice: str) -> None:
    for split in SPLITS:
        answers = [row["answer"] for row in rows_of(TRACE / "sample" / choice / f"{split}.json")]
        if choice == "ScienceQA":
            assert all(answer[1] == "\n" and len(answer) > 10 for answer in answers)
            answers = [answer[0] for answer in answers]
        counts = Counter(answers)
        assert set(counts) == set("ABC")
        assert max(counts.values()) - min(counts.values()) <= 1


def test_prepare_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(["--data_dir", str(TRACE / "sample")]) == 0
    assert "ready: 8 tasks" in capsys.readouterr().out
