"""Atomic writing of files and folders, and errors of reading that name the problem."""

import os
from pathlib import Path

import pytest

from codyra_llm.errors import UserError
from codyra_llm.files import (
    MODE,
    append_json_line,
    ordinary_file,
    plain_name,
    read_json_lines,
    read_jsonl,
    read_text,
    remove,
    replace_file,
    replace_folder,
    sha256,
    write_text,
)


class Killed(Exception):
    pass


def test_a_file_is_replaced_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "first")
    with pytest.raises(Killed), replace_file(path) as scratch:
        scratch.write_text("half")
        raise Killed
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["results.json"]
    write_text(path, "second")
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["results.json"]


def test_a_folder_is_replaced_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replace_folder(folder) as scratch:
        (scratch / "a").write_text("1")
        (scratch / "b").write_text("2")
    with pytest.raises(Killed), replace_folder(folder) as scratch:
        (scratch / "a").write_text("half")
        raise Killed
    assert sorted(os.listdir(folder)) == ["a", "b"] and (folder / "a").read_text() == "1"
    (tmp_path / "model.tmp").mkdir()  # left by a killed process
    (tmp_path / "model.tmp" / "c").write_text("3")
    with replace_folder(folder) as scratch:
        (scratch / "a").write_text("4")
    assert os.listdir(folder) == ["a"] and os.listdir(tmp_path) == ["model"]


def test_what_is_written_can_be_read_by_those_whom_the_umask_allows(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "entry") as scratch:
        (scratch / "weights").touch(mode=0o600)
    assert (tmp_path / "entry" / "weights").stat().st_mode & 0o777 == MODE


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kept").touch()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    remove(tmp_path / "model")
    assert not (tmp_path / "model").exists() and (tmp_path / "disk" / "kept").exists()
    remove(tmp_path / "nothing")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_journal_whose_last_line_was_cut_off(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    for value in ({"a": 1}, ["b", 2], "third"):
        append_json_line(path, value)
    os.truncate(path, path.stat().st_size - cut)
    known = read_json_lines(path)
    assert known == [{"a": 1}, ["b", 2]][: len(known)] and len(known) == (2 if cut < 9 else 1 + (cut < 9))
    append_json_line(path, "again")
    assert read_json_lines(path) == [*known, "again"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\x1bb", "\u202ea", 7, None, "é" * 128])
def test_names_that_lead_elsewhere(name: object) -> None:
    with pytest.raises(UserError, match="file: the entry"):
        plain_name(name, "file: the entry")


@pytest.mark.parametrize("name", ["01-FOMC", "a b", "..a", "é" * 127, "中"])
def test_names_that_do_not(name: str) -> None:
    assert plain_name(name, "file: the entry") == name


def test_only_ordinary_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "weights").write_text("w")
    assert ordinary_file(tmp_path / "entry", "weights").read_text() == "w"
    (tmp_path / "entry" / "link").symlink_to("/etc/passwd")
    (tmp_path / "other").symlink_to(tmp_path / "entry")
    os.mkfifo(tmp_path / "entry" / "pipe")
    for folder, name, problem in (
        ("entry", "link", "is a link"),
        ("other", "weights", "is a link"),
        ("entry", "pipe", "is not a file"),
        ("entry", "none", "No such file"),
    ):
        with pytest.raises(UserError, match=problem):
            ordinary_file(tmp_path / folder, name)


def test_text_of_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "mark").write_bytes("\ufeffa".encode())
    assert read_text(tmp_path / "mark") == "a"
    (tmp_path / "wide").write_bytes("a".encode("utf-16"))
    with pytest.raises(UserError, match=r"wide: not UTF-8 text .byte 0.; save it as UTF-8; use JSON"):
        read_text(tmp_path / "wide", "use JSON")


def test_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": "x\u2028y"}\n\n[1]\n')
    assert read_jsonl(tmp_path / "rows") == [(1, {"a": "x\u2028y"}), (3, [1])]
    (tmp_path / "rows").write_text('[1]\n{"a": 1, "a": 2}\n')
    with pytest.raises(UserError, match='rows line 2: not valid JSON: the key "a" is given twice'):
        read_jsonl(tmp_path / "rows")


def test_a_hash_is_of_all_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (1 << 20) + b"y")
    before = sha256(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x" * (1 << 20) + b"z")
    assert sha256(tmp_path / "file") != before
