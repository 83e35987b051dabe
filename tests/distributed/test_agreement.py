"""Ranks that differ in settings, data or weights end before anything is written; one line names the difference."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked import run_forked

EXPECTED = {
    "seed": "rank 1 of 2 and rank 0 have different seed ('5' and '1234')",
    "rate": "rank 1 of 2 and rank 0 have different train.learning_rate",
    "micro batch": "rank 1 of 2 and rank 0 have different train.per_device_train_batch_size",
    "data": "rank 1 of 2 and rank 0 have different data",
    "weights": "rank 1 of 2 and rank 0 have different model weights",
    "nothing": "all results: ",
}


@pytest.fixture(scope="module")
def ended(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[int], str, Path]]:
    """Exit statuses, output and run folder, by what differs."""
    folder = tmp_path_factory.mktemp("agreement")
    jobs = [
        {"what": what, "model": str(tiny_folder), "output": str(folder / what), "log": str(folder / f"{what}.log")}
        for what in EXPECTED
    ]
    statuses = run_forked("tests.distributed.agree_worker", jobs)
    return {
        job["what"]: (status, Path(job["log"]).read_text(), Path(job["output"]))
        for job, status in zip(jobs, statuses, strict=True)
    }


@pytest.mark.parametrize("what", EXPECTED)
def test_a_rank_with_something_else_is_named(ended: dict[str, Any], what: str) -> None:
    statuses, printed, output = ended[what]
    assert EXPECTED[what] in printed
    assert "Traceback" not in printed
    assert statuses == ([0, 0] if what == "nothing" else [2, 2])
    assert output.exists() == (what == "nothing")
