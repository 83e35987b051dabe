"""Writes pages of finished or running runs: of one run, of a comparison, of several runs side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

from codyra_llm.errors import UserError, reason
from codyra_llm.report.page.comparison import report_comparison
from codyra_llm.report.page.run import report
from codyra_llm.report.page.side_by_side import report_several
from codyra_llm.results.schema import read_results

SECONDS = 2.0  # between two looks at results.json


def make_report(folders: Sequence[Path], output: Path) -> Path:
    """Writes the page of a run or comparison to its folder, or of several runs to `output`; returns its path.

    Raises:
        UserError: a folder contains neither, or damaged files, or cannot be written.
    """
    try:
        if len(folders) > 1:
            return report_several(folders, output)
        (folder,) = folders
        if (folder / "comparison.json").is_file():
            return report_comparison(folder)
        return report(folder)
    except OSError as error:
        raise UserError(f"{folders[0]}: the page cannot be written: {reason(error)}") from None


def watch(folder: Path) -> None:
    """Rewrites the page of a run whenever its results change, until it is finished; the page refreshes until then.

    Raises:
        UserError: see `make_report`.
    """
    seen = 0
    while True:
        results = folder / "results.json"
        changed = results.stat().st_mtime_ns if results.is_file() else 0
        if changed != seen or not seen:
            try:
                path = report(folder, refresh=True)
            except OSError as error:
                raise UserError(f"{folder}: the page cannot be written: {reason(error)}") from None
            if not seen:
                print(f"{path} refreshes itself until the run is finished; Ctrl-C ends this", flush=True)
            if read_results(folder).finished:
                return
            seen = changed
        time.sleep(SECONDS)
