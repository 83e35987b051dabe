"""Runs of methods that keep state between tasks: after a stop and a resume, the result has the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.errors import Stopped, UserError
from codyra_llm.ledger.describe import describe
from codyra_llm.ledger.entry import read_entry
from codyra_llm.ledger.ledger import read_ledger
from codyra_llm.models.load import load_model
from codyra_llm.report.reporter import Reporter
from tests.e2e.conftest import Command
from tests.e2e.test_run import tiny_config

SETTINGS: dict[str, dict[str, Any]] = {
    "codyra": {
        "retention.prompts": 1.0,
        "retention.own_text": 5.0,
        "retention.budget": 0.01,
        "retention.protected": 0.25,
        "retention.texts": 6,
        "retention.text_length": 12,
    },
    "own text": {
        "method": "lora",
        "retention.own_text": 5.0,
        "retention.top_k": 7,
        "retention.texts": 6,
        "retention.text_length": 12,
    },
    "seqlora": {},
    "replay": {"replay.fraction": 0.2},
    "ewc": {"ewc.strength": 100.0, "ewc.rows": 8},
    "olora": {"olora.norms": 0.01},
    "agem": {"agem.rows": 4},
    "gem": {"gem.rows": 4},
    "ogd": {"ogd.rows": 4},
    "derpp": {"derpp.fraction": 0.2},
    "inflora": {"inflora.rows": 6},
    "codyra_protected": {"codyra_protected.rows": 6},
    "contrast_lora": {"contrast_lora.rows": 6, "contrast_lora.texts": 4, "contrast_lora.text_length": 12},
    "codyra_contrast": {"codyra_contrast.rows": 6, "codyra_contrast.texts": 4, "codyra_contrast.text_length": 12},
    "osft_lora": {},
    "osft": {},
    "ewc_lora": {"ewc_lora.rows": 6},
    "migu": {},
    "slao": {},
    "mean": {},
    "magmax": {},
    "ties": {},
    "dare": {},
    "hide": {},
    "joint": {},
    "routed": {},
    "codyra_refit": {"codyra_refit.share": 0.5},
    "ema": {"ema.decay": 0.9},
    "codyra_weighed": {"codyra_weighed.texts": 4, "codyra_weighed.text_length": 12},
    "lora_null": {"lora_null.texts": 4, "lora_null.text_length": 12},
    "moram": {},
    "treelora": {},
    "treelora-repaired": {"method": "treelora", "treelora.repaired": True},
    "l2p": {},
    "l2p-repaired": {"method": "l2p", "l2p.repaired": True},
    "dualprompt": {},
}


def config_of(method: str, model: Path, output: Path) -> RunConfig:
    usual = {"method": method, "order": ["FOMC", "NumGLUE-cm"], "evaluate.tasks": "last"}
    return tiny_config(model, output, **usual | SETTINGS[method])


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
    assert all(ranks.mean <= ranks.initial for ranks in whole.ranks)
    kept = [str(file.relative_to(tmp_path / "whole")) for file in (tmp_path / "whole").glob("kept/*/*.safetensors")]
    for file in ("model/model.safetensors", "ledger/02-NumGLUE-cm/adapter_model.safetensors", *kept):
        ours, theirs = load_file(tmp_path / "cut" / file), load_file(tmp_path / "whole" / file)
        apart = 1e-6 if file in kept else 0  # eigenvectors of a matrix at another memory address may differ
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=apart, rtol=0, msg=f"{file}: {name}")


def test_a_router_sends_rows_to_their_adapters(tiny_folder: Path, tmp_path: Path) -> None:
    """Correctly routed rows have the oracle's loss; the router's accuracy is in the results."""
    oracle, router = (
        run(
            tiny_config(
                tiny_folder,
                tmp_path / by,
                **{"method": "routed", "routed.by": by, "order": ["FOMC", "NumGLUE-cm"], "evaluate.scores": "nll"},
            )
        )
        for by in ("oracle", "ridge")
    )
    assert oracle.routing == {} and set(router.routing) == {"FOMC", "NumGLUE-cm"}
    assert router.routing["NumGLUE-cm"][1] == 0, "which is not learned yet"
    right = 0
    for task, accuracies in router.routing.items():
        last = accuracies[2]
        assert last is not None and last > 50, "the tasks' prompts differ in every word"
        files = (tmp_path / by / "predictions" / f"2-NumGLUE-cm.{task}.jsonl" for by in ("oracle", "ridge"))
        rows = [[json.loads(line)["nll"] for line in file.read_text().splitlines()] for file in files]
        right += sum(a == pytest.approx(b, abs=1e-5) for a, b in zip(*rows, strict=True))
        assert last < 100 or rows[0] == pytest.approx(rows[1], abs=1e-5)
    assert right >= 5


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


def updates_of(folder: Path, name: str) -> list[torch.Tensor]:
    return [B @ A for B, A in (read_entry(entry)[name] for entry in sorted((folder / "ledger").glob("0*")))]


def test_entries_that_are_not_summed(tiny_folder: Path, tmp_path: Path, command: Command, refused: Command) -> None:
    run(config_of("mean", tiny_folder, tmp_path / "run"))
    command("materialize.py", "--ledger", tmp_path / "run" / "ledger", "--output_dir", tmp_path / "model")
    ours, saved = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(tmp_path / "run/model/model.safetensors"),
    )
    assert all(torch.equal(ours[name], value) for name, value in saved.items())
    name = "model.layers.1.self_attn.v_proj"
    one, other = updates_of(tmp_path / "run", name)
    base = load_model(str(tiny_folder)).get_submodule(name).weight
    torch.testing.assert_close(saved[f"{name}.weight"], base + (one + other) / 2)

    summing = ("--config", "configs/quickstart.yaml", "--model.name_or_path", tiny_folder, "--adapter.rank", 4)
    more = ("--order", "FOMC", "--output_dir", tmp_path / "more", "--extend", tmp_path / "run" / "ledger")
    assert "entries are combined by" in refused("train_trace.py", *summing, *more)
    in_place = (
        "--method",
        "mean",
        "--merge.mode",
        "in_place",
        "--order",
        "FOMC",
        "--output_dir",
        tmp_path / "more",
    )
    assert "set merge.mode exact" in refused("train_trace.py", *summing, *in_place)


def test_what_is_live_at_inference_and_not_merged(tiny_folder: Path, tmp_path: Path) -> None:
    several = {"order": ["FOMC", "NumGLUE-cm"], "evaluate.tasks": "all"}
    routed = run(tiny_config(tiny_folder, tmp_path / "routed", method="routed", **several))
    lora = run(tiny_config(tiny_folder, tmp_path / "lora", method="lora", **several))
    base, first, second = routed.answer_nll
    assert first[0] == pytest.approx(lora.answer_nll[1][0], abs=1e-5) and first[0] < base[0] - 0.2
    assert first[1] == pytest.approx(base[1], abs=1e-6), "what is not learned yet has nothing live"
    assert second[0] == first[0], "nothing is forgotten"
    assert second[1] < base[1] - 0.2
    saved = load_file(tmp_path / "routed" / "model" / "model.safetensors")
    assert all(
        torch.equal(saved[name], value)
        for name, value in load_model(str(tiny_folder)).state_dict().items()
        if name in saved
    )
    assert "these are the merged weights alone" in (tmp_path / "routed" / "model" / "README.md").read_text()


def test_no_prompt_before_a_row_is_the_model_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    of_one = {"order": ["FOMC"], "train.num_train_epochs": 1, "evaluate.scores": "nll"}
    none = {"method": "l2p", "l2p.selected": 0, "l2p.pull": 0.0}
    without = run(tiny_config(tiny_folder, tmp_path / "without", **none, **of_one))
    base, after = without.answer_nll
    assert after == base
    found = run(tiny_config(tiny_folder, tmp_path / "with", method="l2p", **of_one))
    assert found.answer_nll[0] == base and found.answer_nll[1] != base
    saved, own = load_file(tmp_path / "with" / "model" / "model.safetensors"), load_model(str(tiny_folder)).state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    assert "these are the merged weights alone" in (tmp_path / "with" / "model" / "README.md").read_text()
    assert "01-FOMC: nothing was merged" in describe(read_ledger(tmp_path / "with" / "ledger"))


def test_components_are_weighed_where_the_best_step_is_kept(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"train.validation": 8, "train.validate_every": 2, "train.keep_best": True}
    whole = SETTINGS["codyra_weighed"] | kept
    results = run(
        tiny_config(tiny_folder, tmp_path / "run", **{"method": "codyra_weighed", "order": ["FOMC"], **whole})
    )
    assert results.finished and results.losses[0].kept_step


def test_a_model_whose_inputs_are_all_protected_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    order = ["FOMC", "NumGLUE-cm", "C-STANCE"]
    config = tiny_config(
        tiny_folder,
        tmp_path / "run",
        method="inflora",
        order=order,
        **{"inflora.threshold": 1.0, "evaluate.tasks": "last"},
    )
    with pytest.raises(UserError, match=r"lower inflora\.threshold"):
        run(config)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "inflora: 1 of 14 projections learn nothing from this task, first model.layers.0.self_attn.o_proj" in log
