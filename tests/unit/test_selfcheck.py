"""The framework of the self-check: parts that fail, lack a package or run out of time; the tables; the page."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from codyra_llm.errors import UserError
from codyra_llm.planning.ceilings import MEASURED
from codyra_llm.selfcheck import parts, report, run
from codyra_llm.selfcheck.ceilings import ceilings
from codyra_llm.selfcheck.outcome import Outcome, Row, Setting, Skipped, bounded
from codyra_llm.selfcheck.parts import Part
from codyra_llm.selfcheck.processes import run_apart


def fine(setting: Setting) -> Iterator[Row]:
    yield bounded("error", 0.5, 1.0)


def wrong(setting: Setting) -> Iterator[Row]:
    yield bounded("error", float("nan"), 1.0)
    yield bounded("error", 0.0, 1.0)


def lacking(setting: Setting) -> Iterator[Row]:
    import no_such_package  # noqa: F401

    yield {}


def refusing(setting: Setting) -> Iterator[Row]:
    yield {"what": "first", "found": 1}
    raise Skipped("no time was left for the second")


def raising(setting: Setting) -> Iterator[Row]:
    raise ValueError("damaged")
    yield {}


def dying(setting: Setting) -> Iterator[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield {}


def waiting(setting: Setting) -> Iterator[Row]:
    yield {"what": "before", "found": 1}
    time.sleep(60)


FUNCTIONS = {each.__name__: each for each in (fine, wrong, lacking, refusing, raising, dying, waiting)}


@pytest.fixture
def carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """The outcome of a part of each kind, run in a fork."""
    monkeypatch.setattr(parts, "IMPORTED", ())
    monkeypatch.setattr(parts, "resolve", lambda target: FUNCTIONS[target.rpartition(":")[2]])
    found = {}
    for name in FUNCTIONS:
        setting = Setting("cpu", tmp_path, time.monotonic() + (3 if name == "waiting" else 60))
        found[name] = parts.carry_out(Part(name, "correctness", f"x:{name}", least=1), setting, tmp_path)
    return found


def test_what_becomes_of_a_part(carried_out: dict[str, Outcome]) -> None:
    found = {name: (outcome.status, outcome.reason) for name, outcome in carried_out.items()}
    assert found["fine"] == ("passed", "")
    assert found["wrong"][0] == "failed" and "NaN" in found["wrong"][1]
    assert found["lacking"] == ("skipped", "no_such_package is not installed")
    assert found["refusing"] == ("skipped", "no time was left for the second")
    assert found["raising"] == ("failed", "ValueError: damaged")
    assert found["dying"][0] == "failed" and "status -9" in found["dying"][1]
    assert found["waiting"] == ("skipped", "was stopped when the time for all parts was over")
    for name in ("refusing", "waiting"):
        assert len(carried_out[name].rows) == 1, "what was measured until then is kept"


def test_a_part_that_the_time_does_not_suffice_for_is_not_begun(tmp_path: Path) -> None:
    setting = Setting("cpu", tmp_path, time.monotonic() + 5)
    outcome = parts.carry_out(Part("long", "speed", "x:none", least=100), setting, tmp_path)
    assert (outcome.status, outcome.rows) == ("skipped", [])
    assert "are left of the time" in outcome.reason


@pytest.mark.parametrize(("kind", "status", "expected"), [
    ("correctness", "failed", 1), ("correctness", "skipped", 0), ("speed", "failed", 0), ("memory", "failed", 0),
])  # fmt: skip
def test_only_what_is_wrong_ends_it_with_an_error(
    kind: str, status: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "carry_out", lambda part, *how: Outcome(part.name, kind, status, "why", 1.0))
    assert run.selfcheck("cpu", tmp_path, 1, ["machine", "merge"], ["codyra", "selfcheck"]) == expected
    content = json.loads((tmp_path / "selfcheck.json").read_text())
    assert [part["part"] for part in content["parts"]] == ["machine", "merge"]
    assert f"| merge | {kind} | {status}: why | 1.0 |" in (tmp_path / "selfcheck.md").read_text()


def test_the_tables_are_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    outcomes = [Outcome("memory", "memory", rows=[{"what": "peak | GB", "found": 1.25}, {"other": True}])]
    report.write(tmp_path, "cuda", 2.0, ["codyra", "selfcheck"], outcomes)
    page = tmp_path / "page.md"
    page.write_text("# Speed\n")
    with pytest.raises(UserError, match="has no <!-- begin selfcheck -->"):
        report.put_into(page, tmp_path)
    page.write_text("# Speed\n<!-- begin selfcheck -->\nold\n<!-- end selfcheck -->\nend\n")
    for _ in range(2):
        report.put_into(page, tmp_path)
    text = page.read_text()
    assert text.startswith("# Speed\n") and text.endswith("\n<!-- end selfcheck -->\nend\n") and "old" not in text
    assert text.count("| peak \\| GB | 1.250 |") == text.count("| yes |") == 1


def test_parts_are_chosen_by_how_their_names_begin() -> None:
    assert run.chosen_parts(["kernels", "merge"]) == ["kernels", "merge", "kernels compiled ahead"]
    assert len(run.chosen_parts([])) == len(parts.PARTS) == len({part.name for part in parts.PARTS})
    with pytest.raises(UserError, match="no part is called kernel_; there are machine; "):
        run.chosen_parts(["kernel_"])


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(
        cuda=cuda, __version__="2.6", version=SimpleNamespace(cuda=None)))  # fmt: skip
    with pytest.raises(UserError, match=r"--gpu: torch 2.6 \(a build without CUDA\) sees no GPU"):
        run.device_of(gpu=True, cpu=False)
    assert run.device_of(gpu=False, cpu=False) == "cpu"


def nested(folder: Path) -> None:
    """Starts a new process from a new process, as the part `resume` starts its runs."""
    status = run_apart(f"{__name__}:leave_a_mark", [folder], folder / "log", 60)
    (folder / "status").write_text(str(status))


def leave_a_mark(folder: Path) -> None:
    (folder / "mark").touch()


def test_new_processes_can_start_others(tmp_path: Path) -> None:
    assert run_apart(f"{__name__}:nested", [tmp_path], tmp_path / "log", 120) == 0
    assert (tmp_path / "status").read_text() == "0" and (tmp_path / "mark").exists()


def test_ceilings_are_those_that_a_plan_reads(tmp_path: Path) -> None:
    rows = list(ceilings(Setting("cpu", tmp_path, time.monotonic() + 60)))
    assert {row["what"] for row in rows} == set(MEASURED)
    assert all(row["found"] > 0 for row in rows)
