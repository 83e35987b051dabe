"""The divergence that a run measures equals that between the models before and after a task."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.distributed.ranks import start
from codyra_llm.example import Example
from codyra_llm.planning.run_plan import plan_run
from tests.e2e.conftest import Command
from tests.e2e.test_run import tiny_config


def config_of(model: Path, output: Path, **settings: object) -> RunConfig:
    how = {"evaluate.divergence": True, "evaluate.scores": "nll", "evaluate.batch_size": 2, "tracking": []}
    return tiny_config(model, output, **how, **settings)


@torch.no_grad()
def kl(before: PreTrainedModel, after: PreTrainedModel, rows: Sequence[Example]) -> float:
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.prompt + row.answer])
        old, new = (model(ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1) for model in (before, after))
        total += float(nn.functional.kl_div(new, old, reduction="sum", log_target=True))
        tokens += len(row.answer)
    return total / tokens


@pytest.mark.parametrize("method", ["codyra", "magmax", "seqlora"])
def test_it_is_that_of_the_two_models(method: str, tiny_folder: Path, tmp_path: Path, command: Command) -> None:
    config = config_of(tiny_folder, tmp_path / "run", method=method, order=["FOMC", "NumGLUE-cm"])
    first, second = run(config).divergence
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny_folder, tmp_path / "run" / "model")]
    command("materialize.py", "--ledger", tmp_path / "run" / "ledger", "--upto", 1, "--output_dir", tmp_path / "one")
    models.insert(1, AutoModelForCausalLM.from_pretrained(tmp_path / "one"))
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    rows = plan_run(config, ranks).test_examples
    assert first.own == pytest.approx(kl(models[0], models[1], rows[0]), rel=1e-3) and first.own > 1e-3
    assert second.own == pytest.approx(kl(models[1], models[2], rows[1]), rel=1e-3) and second.own > 1e-3
    assert second.earlier == pytest.approx(kl(models[1], models[2], rows[0]), rel=1e-3)
    assert first.earlier is None and first.text is None and second.text is None


def test_what_the_merged_weights_do_not_show_is_not_measured(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path / "run", method="routed", order=["FOMC"])
    assert run(config).divergence == []
    assert "evaluate.divergence is not measured with method routed" in (tmp_path / "run" / "train.log").read_text()


def test_on_text(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"general.suites": ["text"], "general.data_dir": "tasks/general/sample", "order": ["FOMC"]}
    (found,) = run(config_of(tiny_folder, tmp_path / "run", **settings)).divergence
    assert found.text is not None and found.text > 0
