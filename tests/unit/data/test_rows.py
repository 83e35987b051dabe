"""Rows in JSON files: what is read, and the one-line error for each kind of bad file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.data.tables import find_files, read_table, to_rows
from codyra_llm.errors import UserError

GOOD = {"prompt": "1 + 1 =", "answer": "2"}


def read_rows(path: Path, note: Callable[[str], None] = lambda line: None) -> list[dict[str, str]]:
    return to_rows(read_table(path), str(path), None, note)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_returns_prompt_and_answer_as_written(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[{"prompt": "态度：\\n", "answer": " ja ", "id": 3}]', encoding="utf-8-sig")
    assert read_rows(path) == [{"prompt": "态度：\n", "answer": " ja "}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": [GOOD]}, ": holds an object, not a list of rows; every row needs"),
        ([], ": no rows; "),
        ([GOOD] * 16 + [{"prompt": "x"}], ' row 17: no "answer"; every row needs {"prompt", "answer"}'),
        ([{"answer": "x"}], ' row 1: no "prompt"; '),
        ([GOOD, "x"], " row 2: is text, not an object; "),
        ([GOOD, None], " row 2: is null, not an object; "),
        ([{"prompt": "x", "answer": 2}], ' row 1: "answer" is a number, not text; '),
        ([{"prompt": ["x"], "answer": "2"}], ' row 1: "prompt" is a list, not text; '),
        ([{"prompt": "", "answer": "2"}], ' row 1: "prompt" is empty; '),
        ([{"prompt": "x", "answer": " \n"}], ' row 1: "answer" is empty; '),
        ([{"prompt": "x\ud83d", "answer": "2"}], ' row 1: "prompt" holds a broken character'),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "train.json", value)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"prompt": "x" "answer"}]', " line 2 column 16: not valid JSON (Expecting ',' delimiter)"),
        (b"", " line 1 column 1: not valid JSON (Expecting value)"),
        (b'[{"prompt": "caf\xe9"}]', ": not UTF-8 text (byte 16); save it as UTF-8"),
        (b"[" * 100_000, ": nested too deeply; every row needs"),
    ],
)
def test_unreadable_json_is_located(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_json_lines_are_read_wherever_they_are(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "2 + 2 =", "answer": "4"}]
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / "train.json").write_text(lines)
    (tmp_path / "test.jsonl").write_text(lines)
    assert read_rows(*find_files(tmp_path, "train")) == read_rows(*find_files(tmp_path, "test")) == rows
    (tmp_path / "test.jsonl").write_text(lines + "{")
    with pytest.raises(UserError, match=r"test\.jsonl line 3: not valid JSON"):
        read_rows(*find_files(tmp_path, "test"))


def test_all_bad_rows_are_counted_and_what_they_have_is_said(tmp_path: Path) -> None:
    bad = {"instruction": "x", "output": "y"}
    path = write(tmp_path / "train.json", [GOOD, bad, GOOD, {"prompt": "x", "answer": ""}, *[bad] * 11])
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert 'row 2: no "prompt"; every row needs' in str(error.value)
    assert "this one has 'instruction', 'output'; row 4: \"answer\" is empty; row 5: no \"prompt\"; " in str(
        error.value
    )
    assert 'row 12: no "prompt"; and 3 more; where columns' in str(error.value)


def test_a_key_that_is_given_twice_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('[{"prompt": "x", "answer": "y"}, {"prompt": "x", "answer": " red", "answer": " blue"}]')
    with pytest.raises(UserError, match=r'train\.json row 2: the key "answer" is given twice; every row needs'):
        read_rows(path)
    path.with_suffix(".jsonl").write_text('{"prompt": "x", "prompt": "y", "answer": "z"}\n')
    with pytest.raises(UserError, match=r'line 1: .*the key "prompt" is given twice'):
        read_rows(path.with_suffix(".jsonl"))


def test_keys_that_are_not_used_are_noted_once(tmp_path: Path) -> None:
    notes: list[str] = []
    read_rows(write(tmp_path / "train.json", [{**GOOD, "system": "s", "input": "i"}] * 3), notes.append)
    (note,) = notes
    assert note.endswith("of its rows, only prompt and answer are used, not 'input', 'system'")


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.json: No such file or directory; every row"):
        read_rows(tmp_path / "train.json")
    with pytest.raises(UserError, match="Is a directory; every row"):
        read_rows(tmp_path)
