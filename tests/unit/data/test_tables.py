"""Users' data: file formats, folder layouts, other column names, datasets of Hugging Face."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from codyra_llm.data.stream import TaskSpec, TaskStream, read_task_file
from codyra_llm.data.tables import find_files, read_split, read_table, to_rows
from codyra_llm.errors import UserError

ROWS = [
    {"prompt": 'Say "a, b",\nthen c', "answer": "a, b\tc"},
    {"prompt": "多字节", "answer": "42"},
    {"prompt": "  x  ", "answer": "ja, nein"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the format of the file name's suffix."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        content = path.read_bytes()
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        content = path.read_bytes()
    elif kind == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        content = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_holds_the_same_rows(kind: str, packed: str, tmp_path: Path) -> None:
    write(tmp_path / f"train{kind}{packed}", ROWS)
    (path,) = find_files(tmp_path, "train")
    assert to_rows(read_table(path), str(path), None) == ROWS
    rows, digest, where = read_split(TaskSpec("accuracy"), tmp_path, "train", pytest.fail)
    assert rows == ROWS and len(digest) == 64 and where == str(path)


@pytest.mark.parametrize(
    ("row", "expected", "said"),
    [
        ({"prompt": "p", "completion": "a"}, "p", "the prompt is prompt, the answer is completion"),
        ({"question": "p", "answer": "a"}, "p", "the prompt is question, the answer is answer"),
        ({"instruction": "p", "output": "a"}, "p", "the prompt is instruction, the answer is output"),
        ({"instruction": "p", "input": "q", "output": "a"}, "p\n\nq", "the prompt is instruction and input"),
        ({"instruction": "p", "input": " ", "output": "a"}, "p", "the prompt is instruction and input"),
        ({"instruction": "p", "input": None, "output": "a"}, "p", "the prompt is instruction and input"),
    ],
)
def test_known_layouts_are_recognised_and_said(row: dict[str, Any], expected: str, said: str) -> None:
    notes: list[str] = []
    assert to_rows([row] * 2, "data", None, notes.append) == [{"prompt": expected, "answer": "a"}] * 2
    (note,) = notes
    assert said in note


def test_an_input_that_only_some_rows_have_is_used_and_said() -> None:
    notes: list[str] = []
    values = [{"instruction": "p", "output": "a"}, {"instruction": "p", "input": "q", "output": "a"}]
    assert [row["prompt"] for row in to_rows(values, "data", None, notes.append)] == ["p", "p\n\nq"]
    assert notes == ["data: the prompt is instruction and input, the answer is output"]


def test_columns_are_mapped_and_others_named_once() -> None:
    notes: list[str] = []
    rows = [{"Frage": "p", "Antwort": "a", "id": 1, "prompt": "x", "answer": "y"}] * 3
    assert (
        to_rows(rows, "data", {"prompt": "Frage", "answer": "Antwort"}, notes.append)
        == [{"prompt": "p", "answer": "a"}] * 3
    )
    assert notes == [
        "data: the prompt is Frage, the answer is Antwort",
        "data: of its rows, only Frage and Antwort are used, not 'answer', 'id', 'prompt'",
    ]
    with pytest.raises(UserError, match=r'row 1: no "Fragen"; every row needs {"Fragen", "Antwort"}; this one has'):
        to_rows(rows, "data", {"prompt": "Fragen", "answer": "Antwort"})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.csv", "prompt,answer\nx,y,z\n", "line 2: 3 fields, the header has 2; put texts that contain commas"),
        ("train.tsv", "prompt\tanswer\nx\n", "line 2: 1 fields, the header has 2; put texts that contain tabs"),
        ("train.csv", 'prompt,answer\n"x,y\n', "line 2: not valid CSV"),
        ("train.csv", "prompt,prompt\nx,y\n", "line 1: a column has no name, or has that of another"),
        ("train.csv", "prompt,answer\n", "no rows"),
        ("train.csv", "", "no rows"),
        ("train.csv", "prompt,answer\nx,\n", 'row 1: "answer" is empty'),
        ("train.parquet", "PAR1", "cannot be read as Parquet"),
        ("train.json.gz", "[]", "Not a gzipped file"),
        ("train.jsonl", '{"messages": []}', '"messages" is empty, not a list of messages'),
        ("train.jsonl", '{"a": 1}', 'row 1: no "prompt".*the task file says them: columns'),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem) as error:
        read_split(TaskSpec("accuracy"), tmp_path, "train", lambda line: None)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_spreadsheets_of_other_countries(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes('prompt;answer\r\n"a;b";"c, ""d"""\r\n\r\n'.encode("utf-8-sig"))
    assert read_split(TaskSpec("accuracy"), tmp_path, "train", pytest.fail)[0] == [
        {"prompt": "a;b", "answer": 'c, "d"'}
    ]


def test_a_file_of_which_half_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json.gz", ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train\.json\.gz: .*end-of-stream"):
        read_table(path)


def test_which_file_is_meant_is_never_guessed(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "train.parquet", ROWS)
    with pytest.raises(UserError, match=r"has train.csv and train.parquet; keep one, or say in the task file which"):
        find_files(tmp_path, "train")
    assert find_files(tmp_path, "train", "train.csv") == [tmp_path / "train.csv"]


def test_several_files_by_pattern_and_what_repeats(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part-{number}.jsonl.gz", ROWS[: number + 1])
    notes: list[str] = []
    spec = TaskSpec("accuracy", files={"train": "part-*.jsonl.gz"})
    rows, digest, where = read_split(spec, tmp_path, "train", notes.append)
    assert where == f"{tmp_path}/part-*.jsonl.gz"
    assert rows == [*ROWS[:1], *ROWS[:2], *ROWS[:3]]
    assert any("3 of 6 rows repeat an earlier one" in note for note in notes)
    (tmp_path / "part-2.jsonl.gz").unlink()
    assert read_split(spec, tmp_path, "train", notes.append)[1] != digest
    with pytest.raises(UserError, match=r"no file is other-\*, which the task file gives for train"):
        read_split(TaskSpec("accuracy", files={"train": "other-*"}), tmp_path, "train", notes.append)


def test_numbers_of_a_parquet_file_are_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1.5 =", "answer": n + 1.5, "count": n, "sure": True} for n in range(3)]
    write(tmp_path / "train.parquet", rows)
    (found, *_), _, _ = read_split(TaskSpec("numeric"), tmp_path, "train", print)
    assert found == {"prompt": "0 + 1.5 =", "answer": "1.5"}
    counted = TaskSpec("numeric", columns={"prompt": "prompt", "answer": "count"})
    assert read_split(counted, tmp_path, "train", print)[0][2]["answer"] == "2"
    sure = TaskSpec("numeric", columns={"prompt": "prompt", "answer": "sure"})
    with pytest.raises(UserError, match=r'row 1: "sure" is true, not text'):
        read_split(sure, tmp_path, "train", print)


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    folder = tmp_path / "hub"
    folder.mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    task_file = tmp_path / "tasks.yaml"
    task_file.write_text(
        f"tasks: {{mood: {{scorer: accuracy, columns: {{prompt: text, answer: label}}, dataset: {{path: {folder}, "
        f"split: {{train: 'train[:2]', test: validation}}}}}}}}\n"
    )
    stream = TaskStream.load(task_file, tmp_path / "no_folder")
    (task,) = stream
    assert task.train == [{"prompt": "a", "answer": "bad"}, {"prompt": "b", "answer": "good"}]
    assert len(task.test) == 3 and len(task.files["train"]) == 64
    task_file.write_text(task_file.read_text().replace("columns: {prompt: text, answer: label}, ", ""))
    for split in ("train", "validation"):
        numbers = {"question": ["1 + 1", "2 + 2", "3 + 3"], "answer": [2, 4, 6]}
        datasets.Dataset.from_dict(numbers).to_parquet(folder / f"{split}.parquet")
    (task,) = TaskStream.load(task_file, tmp_path / "no_folder")
    assert task.train[1] == {"prompt": "2 + 2", "answer": "4"}
    task_file.write_text(task_file.read_text().replace("validation", "nowhere"))
    with pytest.raises(UserError, match=r"dataset .* nowhere: cannot be loaded: "):
        TaskStream.load(task_file, tmp_path)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("files: {dev: x}", "files: 'dev' is no split; there are train and test"),
        ("files: {train: ../x}", "leads out of the task's folder"),
        ("columns: {prompt: x}", "columns: names the columns of prompt and answer"),
        ("dataset: {path: x}, files: {train: y}", "files and dataset: give one of them"),
        ("dataset: {name: x}", "dataset.path: Field required"),
        ("dataset: {path: x, stream: true}", "dataset.stream: Unexpected keyword"),
    ],
)
def test_a_task_file_that_cannot_be_meant(entry: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(f"tasks: {{a: {{scorer: accuracy, {entry}}}}}\n")
    with pytest.raises(UserError, match=problem):
        read_task_file(tmp_path / "tasks.yaml")


def test_where_rows_come_from_is_no_part_of_what_a_task_is() -> None:
    plain, elsewhere = (
        TaskSpec("accuracy"),
        TaskSpec("accuracy", files={"train": "x"}, columns={"prompt": "p", "answer": "a"}),
    )
    assert plain.content == elsewhere.content and "columns" not in plain.content


def test_an_answer_may_be_several(tmp_path: Path) -> None:
    rows = [{"question": "Capital?", "answer": ["Rome", "Roma"]}, {"question": "River?", "answer": ["Tiber"]}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    found = read_split(TaskSpec(("f1", "accuracy")), tmp_path, "test", lambda line: None)[0]
    assert found == [
        {"prompt": "Capital?", "answer": "Rome", "references": ["Rome", "Roma"]},
        {"prompt": "River?", "answer": "Tiber"},
    ]
    (tmp_path / "test.json").write_text(json.dumps([{**rows[0], "answer": ["Rome", " "]}]))
    with pytest.raises(UserError, match='row 1: "answer" is a list, not text'):
        read_split(TaskSpec("f1"), tmp_path, "test", lambda line: None)
