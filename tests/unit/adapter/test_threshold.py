"""The proximal step and its schedule: exact zeros, the right components, the same on any slice."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from codyra_llm import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, prune
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.optimizer import reference_threshold, soft_threshold


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20), st.floats(0, 2))
def test_soft_threshold_is_the_proximal_operator(values: list[float], threshold: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    result = soft_threshold(x, threshold)
    assert ((result == 0) == (x.abs() <= threshold)).all()
    assert (result.abs() <= x.abs()).all()
    assert (result * x >= 0).all()
    moved = result != 0
    torch.testing.assert_close((x - result)[moved].abs(), torch.full_like(x[moved], threshold))
    # the official rule differs only between k and 2k, where it returns zero
    outside = (x.abs() > 2 * threshold) | (x.abs() < threshold)
    torch.testing.assert_close(reference_threshold(x, threshold)[outside], result[outside])


@pytest.mark.parametrize("mode", ["importance", "budget"])
@pytest.mark.parametrize("steps", [2, 15, 31, 46, 500, 1501])
def test_total_shrink_does_not_depend_on_the_number_of_steps(mode: str, steps: int) -> None:
    schedule = ThresholdSchedule(CoDyRAConfig(threshold_mode=mode), steps)
    thresholds = [schedule.threshold(step) for step in range(steps)]
    assert sum(thresholds) == pytest.approx(schedule.config.strength)
    assert thresholds == sorted(thresholds)
    assert sum(t == 0 for t in thresholds) == -(-steps // 2)
    assert max(thresholds) <= 2 * schedule.config.strength / schedule.sparse_steps
    assert schedule.can_prune


def test_reference_mode_says_that_it_cannot_prune_a_short_task() -> None:
    config = CoDyRAConfig(threshold_mode="reference")
    assert not ThresholdSchedule(config, 46).can_prune
    assert ThresholdSchedule(config, 500).can_prune


class TwoLayers(nn.Module):
    """The first projection can solve the task; the second hardly affects the output."""

    def __init__(self) -> None:
        super().__init__()
        self.needed = nn.Linear(12, 10, bias=False, dtype=torch.float64)
        self.idle = nn.Linear(12, 10, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.needed(x) + 1e-3 * self.idle(x)


TARGETS = ("needed", "idle")


def train(config: CoDyRAConfig, steps: int = 120) -> tuple[nn.Module, list[int], list[float]]:
    """Trains two layers on an update of rank 2; returns the model, and the live gates and loss after each step."""
    torch.manual_seed(0)
    model = TwoLayers()
    target = torch.randn(10, 2, dtype=torch.float64) @ torch.randn(2, 12, dtype=torch.float64)
    x = torch.randn(256, 12, dtype=torch.float64)
    y = model(x).detach() + x @ target.T
    inject(model, config, seed=3)
    optimizer = ProximalAdamW.for_model(model, config, lr=0.03)
    schedule = ThresholdSchedule(config, steps)
    live, losses = [], []
    for step in range(steps):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        schedule.apply(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
        live.append(int(optimizer.live_gates))
        losses.append(loss.item())
    return model, live, losses


def test_importance_prunes_what_the_task_does_not_need() -> None:
    model, live, losses = train(CoDyRAConfig(rank=8, target_modules=TARGETS))
    assert live[59] == 16, "nothing is pruned in the dense stage"
    needed, idle = prune(model)
    assert (idle.name, idle.rank) == ("idle", 0)
    assert needed.rank >= 2
    assert needed.rank == live[-1]
    assert losses[-1] < 0.05 * losses[0]


def test_lora_keeps_every_component_and_its_gates_at_one() -> None:
    config = CoDyRAConfig(rank=8, target_modules=TARGETS, train_gates=False, gate_init="ones")
    model, *_ = train(config)
    assert all(torch.equal(layer.gate.detach(), torch.ones_like(layer.gate)) for _, layer in gated_layers(model))
    assert [module.rank for module in prune(model)] == [8, 8]


def test_gates_have_a_learning_rate_of_their_own() -> None:
    model = TwoLayers()
    config = CoDyRAConfig(rank=4, target_modules=TARGETS, gate_learning_rate=0.01)
    inject(model, config)
    optimizer = ProximalAdamW.for_model(model, config, lr=0.001)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.01]
    assert "threshold" not in optimizer.param_groups[0]
    assert optimizer.defaults["betas"] == (0.9, 0.9999)


@pytest.mark.parametrize("mode", ["importance", "budget", "reference"])
def test_one_flat_padded_slice_gives_the_same_gates_as_whole_parameters(mode: str) -> None:
    """ZeRO gives the optimizer all gates as one flat tensor, padded with zeros."""
    torch.manual_seed(0)
    gates = [torch.ones(4), torch.ones(6)]
    gradients = [[torch.randn(4) * 0.1, torch.randn(6)] for _ in range(40)]
    config = CoDyRAConfig(threshold_mode=mode, threshold_strength=1.0, gate_init="normal", ramp_levels=10)

    def trajectory(parameters: list[nn.Parameter], split: Any) -> torch.Tensor:
        group = {"params": parameters, "threshold": 0.0, "threshold_mode": mode, "importance_decay": 0.9}
        optimizer = ProximalAdamW([group], lr=0.01)
        schedule = ThresholdSchedule(config, 40)
        for step, gradient in enumerate(gradients):
            for parameter, part in zip(parameters, split(gradient), strict=True):
                parameter.grad = part.clone()
            schedule.apply(optimizer, step)
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    whole = trajectory([nn.Parameter(gate.clone()) for gate in gates], lambda gradient: gradient)
    padding = torch.zeros(6)
    flat = trajectory([nn.Parameter(torch.cat([*gates, padding]))], lambda g: [torch.cat([*g, padding])])
    torch.testing.assert_close(flat[:10], whole, atol=1e-6, rtol=0)
    assert torch.equal(flat[:10] == 0, whole == 0)
    assert not flat[10:].any()
    assert mode == "reference" or (whole == 0).any()


def test_the_importance_rule_by_hand() -> None:
    """Three steps of hand-written arithmetic: averages, common reference, clipped thresholds, exact zeros."""
    gates = [1.0, 1.0, 1.0, -0.5]
    gradients = [[4.0, 0.1, 1e-5, 2.0], [2.0, 0.2, 1e-5, 1.0], [3.0, 0.1, 1e-5, 0.5]]
    thresholds, decay = [0.0, 0.1, 0.2], 0.8
    parameter = nn.Parameter(torch.tensor(gates, dtype=torch.float64))
    group = {"params": [parameter], "threshold": 0.0, "threshold_mode": "importance", "importance_decay": decay}
    optimizer = ProximalAdamW([group], lr=0.0)  # AdamW moves nothing: only the threshold acts
    average = [0.0] * 4
    for gradient, threshold in zip(gradients, thresholds, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.param_groups[0]["threshold"] = threshold
        optimizer.step()
        contributions = [abs(g * d) for g, d in zip(gates, gradient, strict=True)]
        average = [decay * s + (1 - decay) * c if c > 0 else s for s, c in zip(average, contributions, strict=True)]
        reference = math.prod(average) ** (1 / 4)
        for i in range(4):
            shrink = threshold * min(max(reference / average[i], 0.1), 4.0)
            gates[i] = math.copysign(max(abs(gates[i]) - shrink, 0.0), gates[i])
        torch.testing.assert_close(parameter.detach(), torch.tensor(gates, dtype=torch.float64))
    assert 0 < optimizer.live_gates == sum(g != 0 for g in gates) < 4


def test_a_dead_component_does_not_move_the_common_reference() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    group = {"params": [parameter], "threshold": 1e-3, "threshold_mode": "importance", "importance_decay": 0.5}
    optimizer = ProximalAdamW([group], lr=0.0)
    for _ in range(200):
        parameter.grad = torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64)
        optimizer.step()
    # both live components are equal, so each step shrinks each of them by exactly the threshold
    expected = torch.tensor([0.8, 0.8, 0.0], dtype=torch.float64)
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [15, 500])
def test_ones_that_the_reference_schedule_cannot_reach_are_noticed(steps: int) -> None:
    config = CoDyRAConfig(threshold_mode="reference", gate_init="ones")
    assert not ThresholdSchedule(config, steps).can_prune
    assert ThresholdSchedule(config, 1000).can_prune
