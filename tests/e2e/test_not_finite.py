"""Numbers that are not finite, wherever they come from: one line says where, and nothing reaches the ledger."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codyra_llm import run
from codyra_llm.adapter import inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import deltas
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.errors import UserError
from codyra_llm.scoring import score_model
from tests.e2e.test_run import tiny_config
from tests.models import tiny_model

SHORT = {"order": ["FOMC"], "train.num_train_epochs": 1, "data.max_train_examples": 24, "data.max_test_examples": 2}
ZERO = ["", "ds_configs/zero1.json", "ds_configs/zero2.json", "ds_configs/zero3.json"]


def damaged(folder: Path, change: Callable[[torch.nn.Module], None], base: Path) -> Path:
    """The tiny model with weights that were changed."""
    model = tiny_model("llama")
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def fails(config: object, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        run(config)  # type: ignore[arg-type]
    assert not list((folder / "ledger").glob("01-*"))
    assert not (folder / "model").exists()
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_base(value: float, tiny_folder: Path, tmp_path: Path) -> None:
    def change(model: torch.nn.Module) -> None:
        model.model.layers[1].self_attn.v_proj.weight[3, 5] = value

    model = damaged(tmp_path / "model", change, tiny_folder)
    line = fails(tiny_config(model, tmp_path / "run", **SHORT), tmp_path / "run")
    assert "task FOMC test row" in line and "float32, before anything was learned" in line
    with pytest.raises(UserError, match="task FOMC test row"):
        score_model(tiny_config(model, tmp_path / "scores", **SHORT))
    unmeasured = {**SHORT, "evaluate.tasks": "last"}
    line = fails(tiny_config(model, tmp_path / "unmeasured", **unmeasured), tmp_path / "unmeasured")
    assert "task FOMC step 0: the loss is nan in float32; the model's weights are damaged" in line


def test_a_base_whose_values_leave_the_range_of_float16(tiny_folder: Path, tmp_path: Path) -> None:
    def change(model: torch.nn.Module) -> None:
        model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
        model.model.layers[0].mlp.up_proj.weight.mul_(1e3)

    model = damaged(tmp_path / "model", change, tiny_folder)
    config = tiny_config(model, tmp_path / "run", **SHORT, **{"model.dtype": "float16"})
    assert "in float16, before anything was learned: " in fails(config, tmp_path / "run")


class _Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize("zero", ZERO)
def test_a_gradient_in_the_last_step(
    zero: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = AnswerLoss.forward, []

    def act(*arguments: object) -> torch.Tensor:
        calls.append(1)
        loss = forward(*arguments)
        return _Infinite.apply(loss) if len(calls) == 6 else loss  # 24 rows, 4 at once

    monkeypatch.setattr(AnswerLoss, "forward", act)
    config = tiny_config(
        tiny_folder, tmp_path / "run", **SHORT, **{"evaluate.tasks": "last", "deepspeed": zero or None}
    )
    line = fails(config, tmp_path / "run")
    assert len(calls) == 6
    assert line.startswith("task FOMC step 2: the gradient norm is ") or "not finite after the last step" in line


@pytest.mark.parametrize("zero", [ZERO[0], ZERO[2]])
def test_a_rate_that_is_too_high(zero: str, tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {**SHORT, "train.learning_rate": 1e25, "evaluate.tasks": "last", "deepspeed": zero or None}
    assert "lower train.learning_rate" in fails(
        tiny_config(tiny_folder, tmp_path / "run", **overrides), tmp_path / "run"
    )


@pytest.mark.parametrize(("dtype", "reach"), [("float16", 300.0), ("bfloat16", 1e19), ("float32", 2e19)])
def test_an_update_that_the_dtype_of_the_weights_cannot_hold(dtype: str, reach: float) -> None:
    model = tiny_model("llama", dtype=getattr(torch, dtype))
    inject(model)
    _, layer = next(gated_layers(model))
    layer.A.data.fill_(1)
    layer.B.data.fill_(reach)
    deltas(model)
    layer.A.data.fill_(reach)
    with pytest.raises(ValueError, match=rf"q_proj: the update may reach .*, {dtype} ends at"):
        deltas(model)


def test_a_projection_that_gets_no_gradient(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = AnswerLoss.forward

    def act(self: AnswerLoss, *arguments: object) -> torch.Tensor:
        for name, layer in gated_layers(self.model):
            if name.endswith("v_proj"):
                layer.register_forward_hook(lambda module, inputs, output: output.detach())
        return forward(self, *arguments)

    monkeypatch.setattr(AnswerLoss, "forward", act)
    for method in ("codyra", "lora"):
        config = tiny_config(tiny_folder, tmp_path / method, **SHORT, **{"evaluate.tasks": "last", "method": method})
        line = fails(config, tmp_path / method)
        assert "task FOMC: no gradient reached 2 of 14 projections, first model.layers.0.self_attn.v_proj" in line


def test_a_loss_that_is_not_finite_later_leaves_a_gap(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import codyra_llm.continual as continual

    real = continual.score_tasks

    def score(*arguments: object, trained: bool) -> list:
        scored = real(*arguments, trained=trained)
        for scores in scored if trained else ():
            object.__setattr__(scores, "nll", float("inf"))
        return scored

    monkeypatch.setattr(continual, "score_tasks", score)
    run(tiny_config(tiny_folder, tmp_path / "run", **SHORT))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["answer_nll"][1] == [None]
