"""prepare_clip: its reports on complete, partial and damaged copies."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.cli.prepare import command, command_of_pictures
from codyra_llm.errors import UserError
from tests.conftest import REPOSITORY
from tests.fuzz.outcome import tree


def call(monkeypatch: pytest.MonkeyPatch, data: Path, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_clip.py", "--data_dir", str(data), *options])
    return command_of_pictures()


def summary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path) -> Any:
    call(monkeypatch, data, "--json")
    return json.loads(capsys.readouterr().out)


def test_a_whole_copy(
    benchmark_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(benchmark_data)
    assert call(monkeypatch, benchmark_data) == 0
    said = capsys.readouterr().out
    assert "ready: 11 tasks" in said and str(benchmark_data / "MNIST" / "raw") in said
    assert "3 classes have fewer than 5 training pictures" in said and "usual split has 2944 and 3669" in said
    assert tree(benchmark_data) == before


def test_what_is_missing_and_where_it_comes_from(
    benchmark_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark_data / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    (benchmark_data / "dtd" / "images" / "gamma" / "0.jpg").write_bytes(b"<html>")
    (benchmark_data / "stanford_cars").rename(benchmark_data / "cars")
    found = summary(monkeypatch, capsys, benchmark_data)
    problems = {name: numbers["problems"] for name, numbers in found["tasks"].items() if numbers["problems"]}
    assert set(problems) == {"Pets", "DTD", "Cars"} and not found["ready"]
    assert "split_zhou_OxfordPets.json missing" in problems["Pets"][0] and "DATASETS.md" in problems["Pets"][0]
    assert "gamma/0.jpg: is no picture" in problems["DTD"][0] and found["tasks"]["DTD"]["opened"] == 2
    assert "no folder stanford_cars" in problems["Cars"][0] and "mirrors" in problems["Cars"][0]
    assert call(monkeypatch, benchmark_data, "--tasks", "Pets") == 1
    assert "not ready: Pets" in capsys.readouterr().out
    assert call(monkeypatch, benchmark_data, "--tasks", "MNIST,SUN397") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "Birds"], "Birds"),
        (["--validation_size", "3", "--output_dir", "out"], "nothing is written"),
        (["--data_dir", "/no/such/folder"], "--data_dir /no/such/folder: no such folder"),
    ],
)
def test_a_wrong_call(options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=said):
        call(monkeypatch, tmp_path, *options)


def test_one_verb_for_both(
    benchmark_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = REPOSITORY / "tasks" / "xtail" / "xtail.yaml"
    monkeypatch.setattr(sys, "argv", ["codyra", "--task_file", str(file), "--data_dir", str(benchmark_data)])
    assert command() == 0
    assert "ready: 10 tasks" in capsys.readouterr().out
    sample = REPOSITORY / "tasks" / "trace" / "sample"
    monkeypatch.setattr(sys, "argv", ["codyra", "--data_dir", str(sample)])
    assert command() == 0
    assert "ready: 8 tasks" in capsys.readouterr().out


def test_the_script(benchmark_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_clip.py", "--data_dir", str(benchmark_data)])
    runpy.run_path(str(REPOSITORY / "scripts" / "prepare_clip.py"), run_name="__main__")
    assert "ready: 11 tasks" in capsys.readouterr().out
