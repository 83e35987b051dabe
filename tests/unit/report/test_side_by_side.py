"""Pages of several runs and of a comparison, the commands that make them, and the table at the end of a run."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.cli import metrics as metrics_command
from codyra_llm.cli import report as report_command
from codyra_llm.config.grid import Grid, grid_runs
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.evaluation.matrix import DEFINITIONS, matrix_metrics
from codyra_llm.report.comparison import Comparison, write_comparison
from codyra_llm.report.tables import end_table, general_line, rank_line
from codyra_llm.results.comparison import Contestant, Estimate
from codyra_llm.results.measures import MEASURES
from codyra_llm.results.schema import to_text
from tests.unit.report.test_page import check, made


def call(command: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["codyra", *map(str, arguments)])
    command.command()


def test_two_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, tasks in (("one", ["FOMC", "Py150"]), ("two", ["Py150", "FOMC"])):
        run = made(tmp_path / name, tasks)
        run.results.config["train"] = {"learning_rate": 0.5 if name == "one" else 0.25}
        (run.folder / "results.json").write_text(to_text(run.results))
    call(report_command, monkeypatch, tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    check(page)
    assert '<th scope="row" dir="auto">train.learning_rate</th><td dir="auto">0.5</td><td dir="auto">0.25</td>' in page
    assert "+25.0 [" in page and "−25.0 [" in page, "differences are paired by row"
    with pytest.raises(UserError, match="--watch takes one run"):
        call(report_command, monkeypatch, tmp_path / "one", tmp_path / "two", "--watch")
    with pytest.raises(UserError, match="name the folder of a run"):
        call(report_command, monkeypatch, tmp_path)


def test_a_run_that_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", ["FOMC"], finished=False)
    pages: list[str] = []

    def meanwhile(_: float) -> None:
        pages.append((run.folder / "report.html").read_text())
        finished = made(tmp_path / "finished", ["FOMC"]).results
        (run.folder / "results.json").write_text(to_text(finished))

    monkeypatch.setattr("codyra_llm.workflows.report.time.sleep", meanwhile)
    call(report_command, monkeypatch, "--watch", run.folder)
    assert len(pages) == 1 and '<meta http-equiv="refresh"' in pages[0]
    assert '<meta http-equiv="refresh"' not in (run.folder / "report.html").read_text()


def test_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid(methods=("lora", "codyra"), seeds=(0,), orders=("order1",), curves={"lora": {"merge.scale": [0.5]}})
    values = dict.fromkeys(MEASURES, 1.0)
    excess = Estimate(-0.5, -0.75, -0.25)
    contestants = [
        Contestant("lora", "lora", None, {"method": "lora"}, 1, values, dict.fromkeys(MEASURES)),
        Contestant("lora+scale=0.5", "lora", 0.5, {"merge.scale": 0.5}, 1, values, dict.fromkeys(MEASURES)),
        Contestant(
            "codyra",
            "codyra",
            None,
            {},
            0,
            values | {"FWT": None},
            values,
            {"nll_final": excess},
            excess,
            ["<b>: full"],
        ),
    ]
    write_comparison(Comparison(1, grid, contestants, {}, {"rank": excess}), tmp_path)
    for run in list(grid_runs(grid))[:2]:
        made(tmp_path / run.folder, ["FOMC", "Py150"])
    call(report_command, monkeypatch, tmp_path)
    page = (tmp_path / "report.html").read_text()
    check(page.replace("/report.html", "").replace('href="lora', 'href="#lora'))
    assert "forgets less than the line at the same learning: −0.500" in page.replace("-0.500", "−0.500")
    assert "Failed: &lt;b&gt;: full" in page and 'id="forgetting_by_task-' in page
    assert {"forgetting.png", "forgetting.svg", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    (tmp_path / "comparison.json").write_text('{"schema_version": 9, "grid": {}, "contestants": []}')
    with pytest.raises(UserError, match="schema_version is 9"):
        call(report_command, monkeypatch, tmp_path)


def test_every_metric_is_printed_with_its_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"])
    found = matrix_metrics(run.results.matrix)
    assert found.keys() == DEFINITIONS.keys()
    run.results.metrics = dict.fromkeys(run.results.matrices, found)
    (run.folder / "results.json").write_text(to_text(run.results))
    call(metrics_command, monkeypatch, run.folder)
    said = capsys.readouterr().out
    lines = {line.split()[0].rstrip(":"): line.split() for line in said.splitlines() if line}
    assert [line.split() for line in said.splitlines()][1] == ["OP", *["62.50"] * len(run.results.matrices), "higher"]
    assert lines.keys() >= DEFINITIONS.keys() and "negative is forgetting" in said


def test_the_end_of_a_run_is_one_table(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"], rows=4)
    lines = [line.split() for line in end_table(run.summary).splitlines()]
    assert lines[0] == ["task", "base", "learned", "now", "lost", "since", "rows"]
    assert lines[1][:5] == ["FOMC", "0.0", "75.0", "50.0", "25.0"] and lines[1][-1] == "4"
    assert lines[2] == ["Py150", "0.0", "75.0", "75.0", "4"], "nothing came after it"
    assert lines[3][:7] == ["mean", "of", "2", "learned", "0.0", "75.0", "62.5"]
    assert rank_line(run.results) == "kept rank: 3.5 of 4 (3.5 to 3.5 by task)"
    general, (base, *_, last) = run.results.general, run.results.stages
    assert general_line(general) == ""
    score = SuiteScore(60.0, 1.5, "percent", True, "acc", 4)
    general.add(run.results.stages, base, {"mmlu": score})
    assert general_line(general) == ""
    general.add(run.results.stages, last, {"mmlu": dataclasses.replace(score, score=57.0)})
    assert general_line(general) == "general ability: -3.0 [-7.2, +1.2] (mmlu 60.0 to 57.0)"
    general.add(run.results.stages, last, {"mmlu": SuiteScore(100.0, None, "percent", True, "acc", 1)})
    assert general_line(general) == "general ability: mmlu 60.0 to 100.0 (of too few items for an interval)"


def test_a_run_that_scored_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"])
    content = json.loads(to_text(run.results))
    content["matrix"][:2] = content["answer_nll"][:2] = [[None, None], [None, None]]
    (run.folder / "results.json").write_text(json.dumps(content))
    call(report_command, monkeypatch, run.folder)
    page = (run.folder / "report.html").read_text()
    assert "FOMC</b>: – before, 50 now (4 rows); not measured when it was just learned" in page
    assert "2 tasks</b>: mean score 62.5 now" in page
