"""prepare_trace: its counts, its messages, and the files it writes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.command import main
from codyra_llm.data.prepare import carve, check, findings, prepare
from codyra_llm.errors import UserError

Row = dict[str, str]


def row(prompt: object, answer: str = "A") -> Row:
    return {"prompt": f"p{prompt}", "answer": answer}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks: `clean` has nothing to report, `messy` has every defect that still leaves it usable."""
    folder = tmp_path / "data"
    save(folder, "clean", [row(i) for i in range(20)], [row(30, "B")], [row(40, "A"), row(41, "B")])
    messy = [row(i) for i in range(10)] + [row(0), row(1, "B")]
    save(folder, "messy", messy, [row(2), row(9, "B")], [row(9, "B"), row(2)])
    (tmp_path / "tasks.yaml").write_text("tasks: {clean: {scorer: choice}, messy: {scorer: choice}}")
    return folder


def save(folder: Path, task: str, train: list[Row], held: list[Row], test: list[Row]) -> None:
    (folder / task).mkdir(parents=True)
    for split, rows in {"train": train, "eval": held, "test": test}.items():
        (folder / task / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def call(data: Path, *options: object) -> int:
    return prepare(["--data_dir", str(data), "--task_file", str(data.parent / "tasks.yaml"), *map(str, options)])


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_counts() -> None:
    train = [row(0), row(0), row(0, "B"), row(1), row(2)]
    test = [row(0, "B"), row(1, "C"), row(7, "B"), row(7, "B")]
    numbers = check({"train": train, "eval": [row(7), row(1)], "test": test})
    assert numbers["rows"] == {"train": 5, "eval": 2, "test": 4}
    assert (numbers["train_unique"], numbers["train_duplicates"], numbers["train_conflicts"]) == (3, 2, 1)
    assert (numbers["test_in_train"], numbers["test_in_train_same_answer"], numbers["test_unique"]) == (2, 1, 3)
    assert (numbers["eval_is_test"], numbers["eval_in_test"]) == (False, 2)
    assert (numbers["majority_answer"], numbers["majority_share"]) == ("B", 0.75)
    assert numbers["prompt_chars"] == {"median": 2, "max": 2}


def test_only_the_letter_of_an_explained_choice_counts_for_the_majority() -> None:
    test = [row(0, "A\nbecause"), row(1, "A\nwhy not"), row(2, "B\nso")]
    assert check({"test": test}, "choice_explained")["majority_share"] == pytest.approx(2 / 3)
    assert check({"test": test}, "rouge_l")["majority_share"] == pytest.approx(1 / 3)


def test_numbers_that_need_a_missing_split_are_none() -> None:
    numbers = check({"test": [row(0), row(1, "B")]})
    assert all(numbers[key] is None for key in ("train_unique", "test_in_train", "eval_is_test", "eval_in_test"))
    assert findings(numbers) == []
    assert check({})["prompt_chars"] is None


def test_findings_name_the_defect_and_the_remedy(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(data) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("clean:", "messy:"))]
    assert [line.split(";")[0].split(":")[1].strip() for line in said if "messy" in line] == [
        "train repeats prompts",
        "1 train prompts have more than one answer",
        "2 of 2 test rows have their prompt in train (1 with the same answer), so the test score flatters a model that "
        "memorises",
        "eval and test are the same rows",
    ]
    assert not [line for line in said if "clean" in line]


def test_an_unusable_task_is_a_finding_and_status_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "clean" / "train.json").unlink()
    (data / "messy" / "eval.json").write_text('[{"prompt": "x"}]')
    assert call(data, "--validation_size", 2, "--output_dir", data.parent / "out") == 1
    out = capsys.readouterr().out
    assert f"clean: {data}/clean/train.json: no such file; unpack the archive again" in out
    assert f'messy: {data}/messy/eval.json row 1: no "answer"; every row needs' in out
    assert "not ready: clean, messy" in out
    assert "nothing written" in out
    assert not (data.parent / "out").exists()


def test_pointing_one_folder_too_high_is_noticed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data.parent / "above").mkdir()
    data.rename(data.parent / "above" / "data")
    assert prepare(["--data_dir", str(data.parent / "above"), "--task_file", str(data.parent / "tasks.yaml")]) == 1
    assert f"point --data_dir to {data.parent}/above/data" in capsys.readouterr().out


def test_json_is_one_object(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(data, "--tasks", "messy", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] is True
    assert said["tasks"]["messy"]["train_conflicts"] == 1
    assert len(said["tasks"]["messy"]["findings"]) == 4
    assert said["output_dir"] is None


def test_carved_copy(data: Path) -> None:
    out = data.parent / "deep" / "out"
    assert call(data, "--validation_size", 3, "--output_dir", out) == 0
    for task in ("clean", "messy"):
        train, held, test = (read(out / task / f"{split}.json") for split in ("train", "eval", "test"))
        prompts = [r["prompt"] for r in train + held]
        assert len(held) == 3
        assert len(set(prompts)) == len(prompts)
        assert not set(prompts) & {r["prompt"] for r in test}
        assert test == read(data / task / "test.json")
        assert all(r in read(data / task / "train.json") for r in train + held)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out.stat().st_mode & 0o777) == (out.parent.stat().st_mode & 0o777)

    again = data.parent / "again"
    again.mkdir()
    assert call(data, "--validation_size", 3, "--output_dir", again) == 0
    assert read(again / "clean" / "eval.json") == read(out / "clean" / "eval.json")


def test_carve_keeps_the_first_of_repeats_and_follows_the_seed() -> None:
    train = [row(i) for i in range(50)] + [row(3, "B")]
    kept, held = carve(train, [row(5)], 10, seed=0)
    assert len(kept) == 39
    assert row(3, "B") not in kept + held
    assert (kept, held) == carve(train, [row(5)], 10, seed=0)
    assert held != carve(train, [row(5)], 10, seed=1)[1]


def test_carve_must_leave_training_rows() -> None:
    train = [row(0), row(0), row(1), row(2)]
    assert len(carve(train, [row(2)], 1, seed=0)[0]) == 1
    with pytest.raises(UserError, match=r"leaves no training rows: 2 of 4 are left .*; give at most 1"):
        carve(train, [row(2)], 2, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation_size", "8", "--output_dir", "OUT"], "error: messy: --validation_size 8 leaves no training"),
        (["--validation_size", "0", "--output_dir", "OUT"], "error: --validation_size 0: must be 1 or more"),
        (["--validation_size", "2"], "error: --validation_size and --output_dir belong together"),
        (["--validation_size", "2", "--output_dir", "DATA"], "already has files; give a new or empty folder"),
        (["--tasks", "clean,FOMC"], "error: --tasks: no task 'FOMC' in "),
        (["--task_file", "OUT"], "out: No such file or directory; task_file is a YAML file"),
        (["--data_dir", "OUT"], "LLM-CL-Benchmark_500"),
        (["--seed", "many"], "command line: argument --seed: invalid int value: 'many'; see --help"),
        (["--tsk", "clean"], "command line: unrecognized arguments: --tsk clean (did you mean --tasks?); see --help"),
        (["--task", "clean"], "command line: unrecognized arguments: --task clean (did you mean --tasks?); see --help"),
    ],
)
def test_wrong_calls_get_one_line_and_status_2(
    data: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    places = {"OUT": str(data.parent / "out"), "DATA": str(data)}
    with pytest.raises(SystemExit) as stop:
        main(lambda: sys.exit(call(data, *[places.get(option, option) for option in options])))
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert sorted(p.name for p in data.parent.iterdir()) == ["data", "tasks.yaml"]


def test_help_says_where_to_get_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare(["--help"])
    assert "github.com/BeyonderXX/TRACE" in capsys.readouterr().out


def test_real_data(trace_500: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The published 500-example version has these defects, counted independently of this code."""
    options = ["--validation_size", "50", "--output_dir", str(tmp_path / "out"), "--json"]
    assert prepare(["--data_dir", str(trace_500), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    tasks = said["tasks"]
    assert {task: n["train_unique"] for task, n in tasks.items() if n["train_duplicates"]} == {
        "FOMC": 496,
        "Py150": 482,
        "NumGLUE-cm": 256,
        "NumGLUE-ds": 490,
    }
    assert {task: n["test_in_train"] for task, n in tasks.items() if n["test_in_train"]} == {
        "FOMC": 1,
        "Py150": 5,
        "NumGLUE-ds": 6,
    }
    assert {task: n["rows"]["test"] for task, n in tasks.items() if n["rows"]["test"] != 100} == {"NumGLUE-cm": 81}
    assert tasks["Py150"]["test_unique"] == 96
    shares = {task: round(100 * n["majority_share"]) for task, n in tasks.items()}
    assert [shares[t] for t in ("C-STANCE", "FOMC", "ScienceQA", "NumGLUE-ds", "NumGLUE-cm")] == [38, 53, 43, 16, 9]
    assert said["written_rows"]["NumGLUE-cm"] == {"train": 206, "eval": 50, "test": 81}
    assert said["written_rows"]["FOMC"] == {"train": 445, "eval": 50, "test": 100}
