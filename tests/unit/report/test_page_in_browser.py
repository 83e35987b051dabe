"""The page in headless Chromium: its script runs without errors, and no script in a model's answers is run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from codyra_llm.report.page.run import report
from tests.unit.report.test_page import HOSTILE, made

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


def opened(browser: str, page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """Returns the page's elements after its script has run, and the console output."""
    how = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--enable-logging=stderr"]
    command = [browser, *how, "--virtual-time-budget=2000", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_our_script_runs_and_no_other(browser: str, tmp_path: Path) -> None:
    made(tmp_path / "run", ["<b>x$y$&'\"", "二つ目 العربية"], answer=HOSTILE)
    page = report(tmp_path / "run")
    elements, console = opened(browser, page, tmp_path / "profile", "--dump-dom")
    assert not console
    assert "<title>run: llama, 2 tasks</title>" in elements
    assert "Theme: auto</button>" in elements and 'aria-label="CSV: ' in elements
    assert re.search(r'<div class="variant scroll" data-variant="2" hidden', elements), "one variant is shown at a time"


def test_a_script_that_was_not_escaped_would_not_run(browser: str, tmp_path: Path) -> None:
    made(tmp_path / "run", ["FOMC"])
    page = report(tmp_path / "run")
    page.write_text(page.read_text().replace("<main>", f"<main>{HOSTILE}"))
    elements, console = opened(browser, page, tmp_path / "profile", "--dump-dom")
    assert "<title>run: llama, 1 task</title>" in elements
    assert "violates the following Content Security Policy" in console
