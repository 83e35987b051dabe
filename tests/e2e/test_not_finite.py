"""Values that are not finite, from any source: one line names the place, and nothing is written to the ledger."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from codyra_llm import run
from codyra_llm.adapter import inject, merge
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import deltas
from codyra_llm.distributed.ranks import start
from codyra_llm.domains.text import domain
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.zero import add_delta, check_updates, load_base
from codyra_llm.errors import UserError
from codyra_llm.ledger.apply import merge_entries
from codyra_llm.ledger.entry import write_entry
from codyra_llm.models.load import load_model, original_weights
from codyra_llm.models.source import open_source
from codyra_llm.workflows.evaluate import score_model
from tests.e2e.test_run import tiny_config
from tests.models import WIDE, tiny_model

SHORT = {"order": ["FOMC"], "train.num_train_epochs": 1, "data.max_train_examples": 24, "data.max_test_examples": 2}
ZERO = ["", "ds_configs/zero1.json", "ds_configs/zero2.json", "ds_configs/zero3.json"]


def damaged(folder: Path, change: Callable[[torch.nn.Module], None], base: Path) -> Path:
    """Writes the tiny model with weights changed by `change`; returns its folder."""
    model = tiny_model("llama", **WIDE)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def fails(config: object, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        run(config)
    assert not list((folder / "ledger").glob("01-*"))
    assert not (folder / "model").exists()
    return str(error.value)


def put(model: torch.nn.Module, weight: str, value: float) -> None:
    model.get_parameter(weight)[-1].view(-1)[-1] = value


@pytest.mark.parametrize(
    ("weight", "value", "overrides"),
    [
        ("model.layers.1.self_attn.v_proj.weight", float("nan"), {}),
        ("model.layers.1.self_attn.v_proj.weight", float("-inf"), {"model.dtype": "bfloat16"}),
        ("model.layers.1.mlp.down_proj.weight", 1e5, {"model.dtype": "float16"}),
        ("model.layers.0.mlp.up_proj.weight", float("inf"), {"deepspeed": "ds_configs/zero3.json"}),
        ("model.norm.weight", float("nan"), {"deepspeed": "ds_configs/zero3.json"}),
        ("model.embed_tokens.weight", float("nan"), {}),  # a token that is in no row
        ("model.layers.0.self_attn.q_proj.weight", float("nan"), {"model.quantization": "nf4"}),
        ("model.layers.0.self_attn.q_proj.weight", float("inf"), {"model.quantization": "int8"}),
    ],
)
def test_a_damaged_base(
    weight: str, value: float, overrides: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    model = damaged(tmp_path / "model", lambda model: put(model, weight, value), tiny_folder)
    line = fails(tiny_config(model, tmp_path / "run", **SHORT, **overrides), tmp_path / "run")
    assert f"{weight} holds values that are not finite" in line and str(model) in line
    with pytest.raises(UserError, match=f"{weight} holds values that are not finite"):
        score_model(tiny_config(model, tmp_path / "scores", **SHORT, **overrides))


@pytest.mark.parametrize("tasks", ["all", "last"])
def test_a_base_whose_values_leave_the_range_of_float16(tasks: str, tiny_folder: Path, tmp_path: Path) -> None:
    def change(model: torch.nn.Module) -> None:
        model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
        model.model.layers[0].mlp.up_proj.weight.mul_(1e3)

    model = damaged(tmp_path / "model", change, tiny_folder)
    overrides = {**SHORT, "model.dtype": "float16", "evaluate.tasks": tasks}
    line = fails(tiny_config(model, tmp_path / "run", **overrides), tmp_path / "run")
    assert "its logits are not finite in float16: " in line and line.endswith("try another model.dtype")


def test_a_base_whose_values_leave_the_range_of_float16_on_some_rows(tiny_folder: Path, tmp_path: Path) -> None:
    token = AutoTokenizer.from_pretrained(tiny_folder).encode("Stance:")[-1]  # the last token of each prompt

    def change(model: torch.nn.Module) -> None:
        model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
        model.model.embed_tokens.weight[token] = 65000

    model = damaged(tmp_path / "model", change, tiny_folder)
    config = tiny_config(model, tmp_path / "run", **SHORT, **{"model.dtype": "float16"})
    line = fails(config, tmp_path / "run")
    assert line.startswith(
        "task FOMC test row 1: the model's loss on the answer is not finite in float16, before anything"
    )
    with pytest.raises(UserError, match="task FOMC test row 1: "):
        score_model(tiny_config(model, tmp_path / "scores", **SHORT, **{"model.dtype": "float16"}))
    unmeasured = {**SHORT, "model.dtype": "float16", "evaluate.tasks": "last"}
    line = fails(tiny_config(model, tmp_path / "unmeasured", **unmeasured), tmp_path / "unmeasured")
    assert "task FOMC step 0: the loss is nan in float16; the model's weights are damaged" in line


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
        return _Infinite.apply(loss) if len(calls) == 6 else loss  # 24 rows in micro batches of 4

    monkeypatch.setattr(AnswerLoss, "forward", act)
    config = tiny_config(
        tiny_folder, tmp_path / "run", **SHORT, **{"evaluate.tasks": "last", "deepspeed": zero or None}
    )
    line = fails(config, tmp_path / "run")
    assert len(calls) == 6
    assert re.match("task FOMC step 2: the gradient norm is (inf|nan) in float32; lower train.learning_rate", line)


@pytest.mark.parametrize("zero", [ZERO[0], ZERO[2]])
def test_a_rate_that_is_too_high(zero: str, tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {**SHORT, "train.learning_rate": 1e9, "evaluate.tasks": "last", "deepspeed": zero or None}
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
    layer.A.data.fill_(reach)
    before = layer.base.weight.clone()
    with pytest.raises(ValueError, match=rf"q_proj: a weight may reach .*, {dtype} ends at"):
        merge(model)
    assert torch.equal(layer.base.weight, before)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"deepspeed": "ds_configs/zero3.json"}, {"model.quantization": "nf4"}, {"model.quantization": "int8"}],
)
def test_a_weight_that_only_the_sum_takes_out_of_range(
    overrides: dict[str, Any], wide_folder: Path, tmp_path: Path
) -> None:
    world = start()
    config = tiny_config(wide_folder, tmp_path / "run", **SHORT, **overrides, **{"model.dtype": "float16"})
    model = load_base(open_source(str(wide_folder)), config, read_deepspeed_json(config.deepspeed), world, print)
    name = "model.layers.0.self_attn.q_proj"
    limit = torch.finfo(torch.float16).max

    def update(size: float) -> dict[str, Any]:
        B, A = torch.zeros(64, 1), torch.zeros(1, 64)
        B[3], A[0, 5] = size, 1
        return {name: (B, A)}

    original = original_weights(str(wide_folder))(f"{name}.weight")
    check_updates(model, update(0.9 * limit), "FOMC")
    add_delta(model.get_submodule(name), *[*update(0.9 * limit)[name], original])
    with pytest.raises(UserError, match=f"task FOMC: {name}: a weight may reach .* lower train.learning_rate"):
        check_updates(model, update(0.2 * limit), "FOMC")


def test_an_update_out_of_range_leaves_a_run_that_can_go_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_folder, tmp_path / "run", **SHORT, **{"model.dtype": "float16", "evaluate.tasks": "last"})
    with monkeypatch.context() as patched:
        patched.setattr("codyra_llm.methods.base.deltas", lambda model, scale: deltas(model, 1e9))
        assert "_proj: a weight may reach" in fails(config, tmp_path / "run")
    run(config)
    assert (tmp_path / "run" / "ledger" / "01-FOMC").is_dir()


def test_entries_of_a_wider_dtype_than_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    world, name = start(), "model.layers.0.self_attn.q_proj"
    write_entry(tmp_path / "01-wide", {name: (torch.full((32, 1), 1e5), torch.ones(1, 32))}, "base")
    for dtype in ("bfloat16", "float16"):
        model, original = load_model(str(tiny_folder), dtype), original_weights(str(tiny_folder))
        if dtype == "bfloat16":
            merge_entries(model, original, tmp_path, ["01-wide"], world)
            continue
        with pytest.raises(UserError, match=f"{name}.weight is not finite with the updates of 01-wide; use a model.d"):
            merge_entries(model, original, tmp_path, ["01-wide"], world)


@pytest.mark.parametrize(
    ("method", "zero"), [("codyra", ZERO[0]), ("lora", ZERO[0]), *(("codyra", z) for z in ZERO[2:])]
)
def test_a_projection_that_gets_no_gradient(
    method: str, zero: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = AnswerLoss.forward

    def act(self: AnswerLoss, *arguments: object) -> torch.Tensor:
        for name, layer in gated_layers(self.model):
            if name.endswith("v_proj"):
                layer.register_forward_hook(lambda module, inputs, output: output.detach())
        return forward(self, *arguments)

    monkeypatch.setattr(AnswerLoss, "forward", act)
    overrides = {**SHORT, "evaluate.tasks": "last", "method": method, "deepspeed": zero or None}
    line = fails(tiny_config(tiny_folder, tmp_path / "run", **overrides), tmp_path / "run")
    assert "task FOMC: no gradient reached 2 of 14 projections, first model.layers.0.self_attn.v_proj" in line


def test_a_loss_that_is_not_finite_later_leaves_a_gap(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = domain.evaluate_tasks

    def evaluate_tasks(tasks: object, rows: object, config: object, ask: Callable[..., Any]) -> list[Any]:
        if not list((tmp_path / "run" / "ledger").glob("01-*")):
            return real(tasks, rows, config, ask)
        answered = lambda questions: [dataclasses.replace(each, loss=float("nan")) for each in ask(questions)]  # noqa: E731
        return real(tasks, rows, config, answered)

    monkeypatch.setattr(domain, "evaluate_tasks", evaluate_tasks)
    folder = tmp_path / "run"
    run(tiny_config(tiny_folder, folder, **SHORT))
    assert json.loads((folder / "results.json").read_text())["answer_nll"][1] == [None]
    rows = (folder / "predictions" / "1-FOMC.FOMC.jsonl").read_text().splitlines()
    assert [json.loads(row, parse_constant=pytest.fail)["nll"] for row in rows] == [None, None]
    assert "after FOMC: the loss on the true answers of FOMC is not finite" in (folder / "train.log").read_text()
