"""A user's own stream: CSV files with other column names, a folder of Parquet files, and the user's own scorer."""

import csv
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from codyra_llm import run
from codyra_llm.errors import UserError
from tests.e2e.test_run import tiny_config

ROWS = [{"question": f"What is {n} plus {n}?", "reply": str(2 * n), "source": "school"} for n in range(24)]
TASKS = {
    "tasks": {
        "sums": {
            "scorer": "own_scores:digits",
            "max_new_tokens": 4,
            "columns": {"prompt": "question", "answer": "reply"},
            "files": {"train": "*.csv"},
        },
        "letters": {"scorer": ["chrf", "accuracy"], "max_new_tokens": 4, "dataset": {"path": "letters"}},
    }
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sums").mkdir(parents=True)
    sums = tmp_path / "data" / "sums"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[16:18]), sums / "test.parquet")
    for name, rows in (("a", ROWS[:8]), ("b", ROWS[8:16])):
        with (sums / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "letters").mkdir()
    letters = [{"prompt": letter, "completion": letter.upper()} for letter in "abcdefghijklmnopqrstuvwx"]
    for split, some in (("train", letters[:16]), ("test", letters[16:18])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), tmp_path / "letters" / f"{split}.parquet")
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS))
    (tmp_path / "own_scores.py").write_text(
        "def digits(prompt, prediction, reference):\n    return 100 * (len(prediction) == len(reference))\n"
    )
    return tmp_path


def test_a_stream_of_ones_own(tiny_folder: Path, folder: Path) -> None:
    own = {"task_file": str(folder / "tasks.yaml"), "data_dir": str(folder / "data"), "order": ["sums", "letters"]}
    config = tiny_config(tiny_folder, folder / "run", **own, **{"data.allow_code": True, "train.num_train_epochs": 1})
    results = run(config)
    assert [(task.train_rows, task.test_rows) for task in results.data.tasks] == [(16, 2), (16, 2)]
    assert all(0 <= score <= 100 for row in results.matrix for score in row if score is not None)
    (further,) = results.further["letters"].items()
    assert further[0] == "accuracy"
    assert all(score is not None and 0 <= score <= 100 for score in further[1])
    assert "letters accuracy" in (folder / "run" / "train.log").read_text()
    log = (folder / "run" / "train.log").read_text()
    assert "the prompt is question, the answer is reply" in log
    assert "only question and reply are used, not 'source'" in log
    assert "the prompt is prompt, the answer is completion" in log

    with pytest.raises(UserError, match=r"task sums: scorer own_scores:digits is code of its own; read it, and set"):
        run(tiny_config(tiny_folder, folder / "again", **own))
    assert not (folder / "again").exists()
