"""A run that measures general ability after its tasks, stopped in the middle of that and gone on with."""

import json
from pathlib import Path

import pytest

from codyra_llm import run
from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.general import lm
from tests.e2e.test_run import TASKS, tiny_config
from tests.suites import write_suite


def test_a_run_measures_general_ability_and_can_be_stopped_there(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(tmp_path)
    overrides = {"general.suites": [suite], "general.limit": 6, "evaluate.batch_size": 2}
    whole = run(tiny_config(tiny_folder, tmp_path / "whole", **overrides))
    general = whole["general"]
    base = general["scores"]["0-base"][suite]["score"]
    assert list(general["scores"]) == ["0-base", *(f"{n}-{task}" for n, task in enumerate(TASKS, 1))]
    for row, found in general["scores"].items():
        assert found[suite]["items"] == 6
        assert general["delta"][row] == pytest.approx(found[suite]["score"] - base)
    assert (tmp_path / "whole" / "general.png").stat().st_size > 1000
    assert "General ability" in (tmp_path / "whole" / "train.log").read_text()

    output = tmp_path / "stopped"
    likelihoods = lm.BatchedLM._loglikelihood_tokens

    def stop_first(self, requests, **rest):
        if not (output / "stopped").exists() and not list(output.glob("ledger/0*")):
            (output / "stop").touch()
        return likelihoods(self, requests, **rest)

    monkeypatch.setattr(lm.BatchedLM, "_loglikelihood_tokens", stop_first)
    with pytest.raises(Stopped, match=r"while measuring general ability \(general-0-base\), after 6 answers"):
        run(tiny_config(tiny_folder, output, **overrides))  # two rows of three choices each
    monkeypatch.undo()
    resumed = run(tiny_config(tiny_folder, output, **overrides))
    assert resumed["general"] == general
    assert json.loads((output / "results.json").read_text())["general"] == json.loads(json.dumps(general))


def test_measured_only_after_the_tasks_that_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.limit": 2, "general.after": [TASKS[-1]]}
    results = run(tiny_config(tiny_folder, tmp_path / "out", **overrides))
    assert list(results["general"]["scores"]) == ["0-base", f"{len(TASKS)}-{TASKS[-1]}"]
    with pytest.raises(UserError, match=r"general\.after: nosuch"):
        run(tiny_config(tiny_folder, tmp_path / "bad", **{**overrides, "general.after": ["nosuch"]}))


def test_never_measured_is_no_reason_to_fail(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.after": [TASKS[0]], "evaluate.tasks": "last"}
    results = run(tiny_config(tiny_folder, tmp_path / "out", **overrides))
    assert results["general"]["scores"] == {}
    assert (tmp_path / "out" / "model").is_dir()
