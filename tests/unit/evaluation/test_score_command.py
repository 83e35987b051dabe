"""`scripts/score.py`: its output, and its errors for bad input."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.cli import score
from codyra_llm.command import main

SCRIPT = Path(__file__).parents[3] / "scripts" / "score.py"
ROW = {"prompt": "Stance:", "prediction": "B.", "reference": "B"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_scores_in_every_variant(tmp_path: Path) -> None:
    wrong = {**ROW, "prediction": "C", "id": 7}
    done = run("--task", "FOMC", write(tmp_path / "p.jsonl", json.dumps(ROW), "", json.dumps(wrong), ""))
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "task": "FOMC",
        "n": 2,
        "totals": {"trace_strict": 0.0, "treelora_prefix": 50.0, "moram": 50.0, "lenient": 50.0},
        "rows": [
            {"trace_strict": 0.0, "treelora_prefix": 100.0, "moram": 100.0, "lenient": 100.0},
            {"trace_strict": 0.0, "treelora_prefix": 0.0, "moram": 0.0, "lenient": 0.0},
        ],
    }


def test_recorded_file_gives_the_recorded_total(scored_rows: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    data = scored_rows("Py150")
    rows = [json.dumps({key: row[key] for key in ROW}, ensure_ascii=False) for row in data["rows"]]
    result = json.loads(run("--task", "Py150", write(tmp_path / "p.jsonl", *rows)).stdout)
    expected = data["aggregate"]["trace_strict"]["headline_percent_all_rows"]
    assert result["totals"]["trace_strict"] == pytest.approx(expected, abs=1e-4)


def test_warnings_stay_off_standard_output(tmp_path: Path) -> None:
    done = run("--task", "MeetingBank", write(tmp_path / "p.jsonl", json.dumps({**ROW, "prediction": "."})))
    assert done.returncode == 0
    assert json.loads(done.stdout)["n"] == 1
    assert done.stderr.startswith("warning: trace_strict: ")
    assert "scored 0: row 0" in done.stderr


def test_own_task_file(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.yaml", "tasks: {capitals: {scorer: accuracy}}")
    rows = write(tmp_path / "p.jsonl", json.dumps({"prompt": "", "prediction": " paris", "reference": "Paris"}))
    done = run("--task", "capitals", "--task_file", tasks, rows)
    assert json.loads(done.stdout)["totals"]["lenient"] == 100


def test_matrix_metrics_are_valid_json_without_nan(tmp_path: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    done = run("--matrix", write(tmp_path / "m.csv", "A,B", ",", "50,", "40,70"))
    assert done.returncode == 0
    metrics = json.loads(done.stdout, parse_constant=no_constant)
    assert metrics["FWT"] is None
    assert math.isclose(metrics["OP"], 55)
    assert metrics["BWT"] == -10


BAD_TASKS = "tasks: {X: {scorer: bleurt}}"
WRONG_ENTRY = "tasks: {X: {scorers: choice}}"


@pytest.mark.parametrize(
    ("arguments", "lines", "message"),
    [
        ([], None, "give --task NAME FILE.jsonl, or --matrix FILE.csv"),
        (["--bogus"], None, "unrecognized arguments"),
        (["--task", "FOMC"], None, "give --task NAME"),
        (["--task", "FOMC", "--matrix", "m.csv"], None, "--matrix stands alone"),
        (["--task", "FOMC", "{file}"], None, "cannot be read"),
        (["--task", "Fomc", "{file}"], [json.dumps(ROW)], "unknown task 'Fomc'"),
        (["--task", "FOMC", "{file}"], [], "no rows in it"),
        (["--task", "FOMC", "{file}"], [json.dumps(ROW), '{"prompt": '], "line 2: not valid JSON"),
        (["--task", "FOMC", "{file}"], ["[1]"], 'line 1: no text under "prompt"'),
        (["--task", "FOMC", "{file}"], [json.dumps(ROW), '{"prompt": "", "prediction": ""}'], "line 2"),
        (["--task", "FOMC", "{file}"], [json.dumps({**ROW, "reference": 3})], 'no text under "reference"'),
        (["--task", "X", "--task_file", "{tasks}", "{file}"], [json.dumps(ROW)], 'scorer "bleurt"; there are accuracy'),
        (["--task", "X", "--task_file", "{file}", "{file}"], [WRONG_ENTRY], 'unknown key "scorers"'),
        (["--task", "X", "--task_file", "{file}", "{file}"], ["a: [", "b"], "not valid YAML"),
        (["--task", "X", "--task_file", "absent.yaml", "{file}"], [json.dumps(ROW)], "absent.yaml: No such file"),
        (["--matrix", "{file}"], None, "cannot be read as CSV"),
        (["--matrix", "{file}"], ["A,B", "1,2", "3,x", "5,6"], "line 3: 'x' is not a number"),
        (["--matrix", "{file}"], ["A,B", "1,2"], "1 rows for 2 tasks"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    lines: str,
    message: str,
) -> None:
    file = tmp_path / "input"
    if lines is not None:
        write(file, *lines)
    tasks = write(tmp_path / "tasks.yaml", BAD_TASKS)
    # runs in this process: starting a process for each case would take most of a minute
    monkeypatch.setattr(sys, "argv", ["score.py", *(each.format(file=file, tasks=tasks) for each in arguments)])
    with pytest.raises(SystemExit) as stop:
        main(score.command)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_exit_status_of_bad_input(tmp_path: Path) -> None:
    done = run("--task", "FOMC", tmp_path / "absent.jsonl")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
