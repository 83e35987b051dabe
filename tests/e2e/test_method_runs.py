"""Methods that keep something between tasks: stopped and resumed, a run comes to the same bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codyra_llm import run
from codyra_llm.errors import Stopped
from codyra_llm.report.reporter import Reporter
from tests.e2e.test_run import tiny_config

SETTINGS = {
    "seqlora": {},
    "replay": {"replay.fraction": 0.2},
    "ewc": {"ewc.strength": 100.0, "ewc.rows": 8},
    "olora": {"olora.norms": 0.01},
}


def config_of(method: str, model: Path, output: Path) -> object:
    return tiny_config(
        model, output, method=method, **{"order": ["FOMC", "NumGLUE-cm"], "evaluate.tasks": "last", **SETTINGS[method]}
    )


@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_resumes_with_what_it_kept(
    method: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config_of(method, tiny_folder, tmp_path / "whole"))
    steps = [len(each.loss) for each in whole.losses]

    def step(self: Reporter, report: object, global_step: int, progress: object) -> None:
        if global_step == steps[0] + 2:  # in the second task
            (tmp_path / "cut" / "stop").touch()

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Reporter, "step", step)
        run(config_of(method, tiny_folder, tmp_path / "cut"))
    resumed = run(config_of(method, tiny_folder, tmp_path / "cut"))
    assert resumed.losses == whole.losses and resumed.matrix == whole.matrix
    for file in ("model/model.safetensors", "ledger/02-NumGLUE-cm/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "cut" / file), load_file(tmp_path / "whole" / file)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_what_was_kept_is_part_of_a_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of("olora", tiny_folder, tmp_path / "run")
    run(config)
    kept = sorted((tmp_path / "run" / "kept").glob("*/kept.safetensors"))
    assert [path.parent.name for path in kept] == ["01-FOMC", "02-NumGLUE-cm"]
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    rests_on = json.loads((newest / "checksums.json").read_text())["rests_on"]
    assert "kept/02-NumGLUE-cm/kept.safetensors" in rests_on


def test_replayed_rows_are_counted(tiny_folder: Path, tmp_path: Path) -> None:
    results = run(config_of("replay", tiny_folder, tmp_path / "run"))
    first, second = results.data.tasks
    assert first.replayed_rows == 0
    assert second.replayed_rows == round(0.2 * first.train_rows)
    longer = tiny_config(
        tiny_folder,
        tmp_path / "longer",
        method="replay",
        **{
            "order": ["FOMC", "NumGLUE-cm"],
            "replay.fraction": 0.5,
            "replay.extra_steps": True,
            "evaluate.tasks": "last",
        },
    )
    assert run(longer).data.tasks[1].steps > second.steps
