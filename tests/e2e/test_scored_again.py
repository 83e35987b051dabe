"""The tasks of a finished run scored again after each task, with models rebuilt from its ledger."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.errors import Stopped, UserError
from codyra_llm.report.folder import OutputFolder
from codyra_llm.results.schema import RunResults, read_results
from codyra_llm.workflows.evaluate import score_run
from codyra_llm.workflows.finished_run import saved_config
from tests.e2e.conftest import Command
from tests.e2e.test_run import tiny_config

pytestmark = pytest.mark.pictures

TASKS = ["FOMC", "NumGLUE-cm"]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(tiny_config(tiny_folder, folder, order=TASKS))


def with_scores(run: Path, output: Path, **evaluate: Any) -> RunConfig:
    config = dataclasses.replace(saved_config(run), output_dir=str(output))
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, **evaluate))


def test_as_the_run_scored(finished: tuple[Path, RunResults], tmp_path: Path) -> None:
    folder, results = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = score_run(folder, with_scores(folder, tmp_path / "again"))
    assert again.matrices == results.matrices
    assert again.answer_nll == results.answer_nll
    assert again.metrics == results.metrics
    assert read_results(tmp_path / "again").matrix == results.matrix
    assert {path: path.read_bytes() for path in before} == before
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {"matrix.csv", "matrix.png", "ranks.png", "results.json", "predictions", "config.yaml"} <= names
    for row in ("0-base", "1-FOMC", "2-NumGLUE-cm"):
        name = f"predictions/{row}.FOMC.jsonl"
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_more_rows_longer_answers_another_variant(
    finished: tuple[Path, RunResults], tmp_path: Path, command: Command
) -> None:
    folder, results = finished
    how = ("--data.max_test_examples", 9, "--evaluate.max_new_tokens", 5, "--evaluate.scorer_variant", "moram")
    output = tmp_path / "more"
    said = command("evaluate.py", "--run", folder, "--tasks", "--after", TASKS[1], *how, "--output_dir", output)
    assert f"after {TASKS[1]}" in said
    again = read_results(output)
    assert [task.test_rows for task in again.data.tasks] == [9, 9]
    assert again.matrix == again.matrices["moram"]
    assert [row[0] is None for row in again.matrix] == [False, True, False]
    lines = (output / "predictions" / f"2-{TASKS[1]}.FOMC.jsonl").read_text().splitlines()
    assert len(lines) == 9 and "nll" in json.loads(lines[0])
    assert results.matrix == read_results(folder).matrix


def test_it_resumes(finished: tuple[Path, RunResults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, results = finished
    config = with_scores(folder, tmp_path / "again")
    append, rounds = OutputFolder.append_answers, []

    def counted(self: OutputFolder, name: str, answered: dict[str, Any]) -> None:
        append(self, name, answered)
        rounds.append(name)
        if len(rounds) == 3:
            self.trigger.touch()

    monkeypatch.setattr(OutputFolder, "append_answers", counted)
    with pytest.raises(Stopped, match="while scoring"):
        score_run(folder, config)
    assert score_run(folder, config).matrix == results.matrix
    in_two_starts = len(rounds)
    score_run(folder, dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    assert len(rounds) == 2 * in_two_starts  # no round was repeated


def test_what_cannot_be_scored(finished: tuple[Path, RunResults], tmp_path: Path) -> None:
    folder, _ = finished
    config = with_scores(folder, tmp_path / "again")
    with pytest.raises(UserError, match="--after nosuch: not a task of this run"):
        score_run(folder, config, ["nosuch"])
    with pytest.raises(UserError, match="order: the run learned FOMC, NumGLUE-cm"):
        score_run(folder, dataclasses.replace(config, order=("FOMC",)))
    with pytest.raises(UserError, match="holds a training run; name another folder"):
        score_run(folder, dataclasses.replace(config, output_dir=str(folder)))
    assert not (tmp_path / "again" / "results.json").exists()
