"""Progress written to a file is an occasional plain line."""

import re

import pytest

from codyra_llm.config import RunConfig
from codyra_llm.engine.train import StepReport
from codyra_llm.report import progress
from codyra_llm.report.reporter import Reporter


def test_lines_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    with progress.progress_bar("FOMC", "step", total=4, done=1, shown=True) as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines and not any("\r" in line for line in lines)
    assert re.fullmatch(r"FOMC: \d of 4 steps, 00:00 so far, .* left", lines[-1]), lines


def test_a_step_writes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(None, RunConfig(), 0)
    with progress.progress_bar("FOMC", "step", total=2, done=0, shown=True) as bar:
        for step in range(2):
            reporter.step(StepReport(step, 1.0, 1e-3, 0.0, 8.0, 0.5, 10, 0.0, 0.1), step, bar)
    assert not capsys.readouterr().err


def test_a_short_piece_of_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("FOMC", "step", total=2, done=0, shown=True) as bar:
        bar.update(2)
    with progress.progress_bar("FOMC", "step", total=2, done=0, shown=False) as bar:
        bar.update(2)
    assert not capsys.readouterr().err
