"""If a rank exits or hangs, the other ends as well within the time limit, with one line that names it."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked import run_forked


@pytest.fixture(scope="module")
def ended(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[int], str]]:
    """Exit statuses and output, by what the second rank does."""
    folder = tmp_path_factory.mktemp("lost")
    jobs = [
        {"how": how, "model": str(tiny_folder), "output": str(folder / how), "log": str(folder / f"{how}.log")}
        for how in ("exits", "stops")
    ]
    statuses = run_forked("tests.distributed.stall_worker", jobs, timeout=300)
    return {job["how"]: (status, Path(job["log"]).read_text()) for job, status in zip(jobs, statuses, strict=True)}


@pytest.mark.parametrize("how", ["exits", "stops"])
def test_the_others_end_with_a_line_that_names_it(how: str, ended: dict[str, Any]) -> None:
    statuses, printed = ended[how]
    assert statuses[0] == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 0 lost rank 1 of 2, which ended or stood still")
    assert "Traceback" not in printed
