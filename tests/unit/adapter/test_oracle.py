"""`reference` mode against trajectories of the official code: gates at each step, kept components, merged weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, merge, prune
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.adapter.optimizer import reference_threshold

NAMES = [
    "onelayer_f64_r4_empty_then_kept",
    "onelayer_f64_r4_no_pruning",
    "onelayer_f64_r4_wd_odd_steps",
    "onelayer_f64_r8_lambda10_warmup",
    "twolayer_f64_r4",
    "twolayer_f64_r8",
    "twolayer_f64_r8_regrowth",
    "twolayer_f32_r4",
]


class Network(nn.Module):
    """Linear layers named layer0, layer1, ... with tanh between them."""

    def __init__(self, arrays: Any, layers: int, dtype: torch.dtype) -> None:
        super().__init__()
        for k in range(layers):
            weight = torch.tensor(arrays[f"layer{k}/weight_base"], dtype=dtype)
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            layer.weight.data = weight
            layer.bias.data = torch.tensor(arrays[f"layer{k}/bias"], dtype=dtype)
            self.add_module(f"layer{k}", layer)

    def forward(self, x: torch.Tensor) -> Any:
        *first, last = self.children()
        for layer in first:
            x = torch.tanh(layer(x))
        return last(x)


@pytest.mark.parametrize("name", NAMES)
def test_trajectory_of_the_official_code(golden: Path, name: str) -> None:
    arrays = np.load(golden / f"codyra_oracle_{name}.npz")
    info = json.loads((golden / f"codyra_oracle_{name}.json").read_text())
    dtype, tolerance = (torch.float64, 1e-10) if info["dtype"] == "float64" else (torch.float32, 1e-4)
    layers = len(info["dims"]) - 1
    config = CoDyRAConfig(
        rank=info["rank"],
        target_modules=[f"layer{k}" for k in range(layers)],
        threshold_mode="reference",
        threshold_strength=info["max_kappa"],
        dense_fraction=info["dense_frac"],
        ramp_levels=info["lambda_num"],
    )
    model = Network(arrays, layers, dtype)

    def tensor(key: str) -> torch.Tensor:
        return torch.tensor(arrays[key], dtype=dtype)

    def close(actual: torch.Tensor, key: str) -> None:
        np.testing.assert_allclose(actual.detach().numpy(), arrays[key], rtol=0, atol=tolerance, err_msg=key)

    for task in range(info["n_tasks"]):
        inject(model, config)
        for name_, layer in gated_layers(model):
            for ours, theirs in (("A", "A_init"), ("B", "B_init"), ("gate", "gate_init")):
                getattr(layer, ours).data = tensor(f"task{task}/{name_}/{theirs}")
        optimizer = ProximalAdamW.for_model(model, config, lr=info["lr"], weight_decay=info["wd"])
        schedule = ThresholdSchedule(config, info["iterations"])
        x, y = tensor(f"task{task}/x"), tensor(f"task{task}/y")
        for step in range(info["iterations"]):
            for group in optimizer.param_groups:
                group["lr"] = info["lr"] * cosine_factor(step, info["iterations"], info["warmup_length"])
            rows = arrays[f"task{task}/batch_index"][step].astype(int)
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            schedule.apply(optimizer, step)
            optimizer.step()
            optimizer.zero_grad()
            np.testing.assert_allclose(loss.item(), arrays[f"task{task}/loss"][step], rtol=0, atol=tolerance)
            for name_, layer in gated_layers(model):
                expected = arrays[f"task{task}/{name_}/gate_after_threshold"][step]
                np.testing.assert_allclose(layer.gate.detach().numpy(), expected, rtol=0, atol=tolerance)
                assert ((layer.gate.detach().numpy() == 0) == (expected == 0)).all()
        close(model(tensor("x_eval")), f"task{task}/y_eval_live_branch")
        report = prune(model)
        survivors = [layer["n_surviving"] for layer in info["tasks_info"][task]["layers"]]
        assert [module.rank for module in report] == survivors
        merge(model)
        if task + 1 < info["n_tasks"]:
            for k in range(layers):
                close(model.get_submodule(f"layer{k}").weight, f"task{task + 1}/layer{k}/weight_at_start")
    for k in range(layers):
        close(model.get_submodule(f"layer{k}").weight, f"layer{k}/weight_after_last_task")
    close(model(tensor("x_eval")), "y_eval_merged_after_last_task")


def test_threshold_rule_of_the_official_code(golden: Path) -> None:
    for case in json.loads((golden / "codyra_prox.json").read_text())["cases"]:
        dtype = getattr(torch, case["dtype"])
        result = reference_threshold(torch.tensor(case["input"], dtype=dtype), case["kappa"])
        assert torch.equal(result, torch.tensor(case["output"], dtype=dtype))


def test_schedule_of_the_official_code(golden: Path) -> None:
    for case in json.loads((golden / "codyra_schedule.json").read_text())["schedules"]:
        config = CoDyRAConfig(
            threshold_mode="reference",
            threshold_strength=case["max_kappa"],
            dense_fraction=case["dense_frac"],
            ramp_levels=case["lambda_num"],
        )
        total = case["total_iterations"]
        schedule = ThresholdSchedule(config, total)
        thresholds = [schedule.threshold(step) for step in range(total)]
        assert sum(thresholds) == pytest.approx(case["total_shrink_sum_of_kappa"], abs=1e-12)
        assert thresholds[-1] == pytest.approx(case["final_threshold"], abs=1e-15)
        assert schedule.can_prune == case["prunes_anything"]
