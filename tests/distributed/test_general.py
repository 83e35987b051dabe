"""General ability is the same at any ZeRO stage, with branches or merged; two ranks stop in a suite and resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.forked import run_forked
from tests.distributed.test_resume import assert_same_run, config_of, run_sessions
from tests.distributed.worker import deepspeed_json
from tests.suites import write_suite

WAYS = {
    "zero0": ("zero0", 1, "auto"),
    "zero2": ("zero2", 2, "auto"),
    "zero3-gathered": ("zero3", 2, "always"),
    "zero3-by-module": ("zero3", 2, "never"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets an empty cache folder, so that no answer is known."""
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))


def nats(folder: Path, row: str) -> list[float]:
    """Returns the log-likelihoods of all choices and passages of a row of the matrix."""
    rows: list[dict[str, Any]] = []
    for suite in ("evens", "text"):
        rows += map(json.loads, (folder / "predictions" / f"{row}.general.{suite}.jsonl").read_text().splitlines())
    return [value[0] if isinstance(value, list) else value for row in rows for value in row["answers"]]


def test_the_same_in_every_way_of_running(tiny_folder: Path, tmp_path: Path) -> None:
    suites = {"general.suites": [write_suite(tmp_path), "text"], "general.limit": 4, "order": ["FOMC"]}
    jobs = []
    for name, (zero, ranks, gather) in WAYS.items():
        deepspeed = deepspeed_json(zero, tmp_path / f"{name}.json")
        config = config_of(tiny_folder, tmp_path / name, deepspeed=deepspeed, **{"evaluate.gather": gather}, **suites)
        jobs.append({"config": config, "ranks": ranks})
    for name, statuses in zip(WAYS, run_forked("tests.distributed.general_worker", jobs), strict=True):
        assert not any(statuses), (tmp_path / f"{name}.log").read_text()[-3000:]
    expected = nats(tmp_path / "zero0", "live")
    assert len(expected) == 4 * 3 + 4
    for name in WAYS:
        for row in ("live", "merged"):
            assert nats(tmp_path / name, row) == pytest.approx(expected, rel=1e-4, abs=1e-3), (name, row)
        results = json.loads((tmp_path / name / "results.json").read_text())
        for of_suite in zip(results["live"].values(), results["merged"].values(), strict=True):
            assert of_suite[0]["score"] == pytest.approx(of_suite[1]["score"], rel=1e-4)


def test_a_rank_that_fails_alone_leaves_no_other_waiting(tiny_folder: Path, tmp_path: Path) -> None:
    suites = {"general.suites": [write_suite(tmp_path)], "general.limit": 4, "order": ["FOMC"]}
    job = {"config": config_of(tiny_folder, tmp_path / "run", **suites), "ranks": 2, "broken": 1}
    assert run_forked("tests.distributed.general_worker", [job], timeout=120) == [[1, 1]]
    assert "rank 1: MemoryError: no room on this rank" in (tmp_path / "run.log").read_text()
    assert not (tmp_path / "run" / "results.json").exists()


def test_two_ranks_are_stopped_in_a_suite_and_go_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {
        "general.suites": [write_suite(tmp_path)],
        "order": ["FOMC"],
        "deepspeed": "ds_configs/zero2.json",
    }
    common["evaluate.batch_size"] = 2
    whole, stopped = (config_of(tiny_folder, tmp_path / name, **common) for name in ("whole", "stopped"))
    assert run_sessions({"config": whole, "ranks": 2}) == [[0, 0]]
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "another"))
    struck = {"config": stopped, "ranks": 2, "strike": [0, "round of answers:3", "SIGTERM"]}  # 2 are the task's
    assert run_sessions(struck) == [[75, 75]]
    where = (tmp_path / "stopped" / "stopped").read_text()
    assert where.startswith("while measuring general ability (general-0-base), after 12 answers")
    assert run_sessions({"config": stopped, "ranks": 2}) == [[0, 0]]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("stopped", "whole"))
    assert ours["general"] == theirs["general"]
