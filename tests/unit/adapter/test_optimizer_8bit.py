"""AdamW with 8-bit moments: the same zero gates as with 32 bits, gates in fp32, and a state that can be restored."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.adapter.optimizer_8bit import ProximalAdamW8bit

WIDE, STEPS = 512, 60
CONFIG = CoDyRAConfig(rank=8, target_modules=("needed", "idle"))


class TwoLayers(nn.Module):
    """One layer that the data need to change, and one that hardly affects the output."""

    def __init__(self) -> None:
        super().__init__()
        self.needed, self.idle = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.needed(x) + 1e-3 * self.idle(x)


def train(
    optimizer_class: type[Proximal], between: Callable[[Proximal, int], None] = lambda optimizer, step: None
) -> tuple[nn.Module, Proximal, list[float]]:
    torch.manual_seed(0)
    model, x = TwoLayers(), torch.randn(64, WIDE)
    update = torch.randn(WIDE, 2) @ torch.randn(2, WIDE) / WIDE
    y = model(x).detach() + x @ update.T
    inject(model, CONFIG, seed=3)
    optimizer = optimizer_class.for_model(model, CONFIG, lr=0.01)
    schedule, losses = ThresholdSchedule(CONFIG, STEPS), []
    for step in range(STEPS):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        schedule.apply(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        between(optimizer, step)
    return model, optimizer, losses


def gates(model: nn.Module) -> torch.Tensor:
    return torch.cat([layer.gate.detach() for _, layer in gated_layers(model)])


def test_the_zeros_are_those_of_32_bits() -> None:
    wide, _, expected = train(ProximalAdamW)
    narrow, _, losses = train(ProximalAdamW8bit)
    assert torch.equal(gates(narrow) == 0, gates(wide) == 0)
    assert 0 < int((gates(narrow) == 0).sum()) < 16
    torch.testing.assert_close(gates(narrow), gates(wide), atol=0.02, rtol=0)
    assert losses[-1] < 0.2 * losses[0]
    assert losses[-1] == pytest.approx(expected[-1], rel=0.2)
    assert losses != expected, "8 bits are not 32"


def test_branches_take_a_quarter_and_gates_stay_in_fp32() -> None:
    model, optimizer, _ = train(ProximalAdamW8bit)
    for _, layer in gated_layers(model):
        for factor in (layer.A, layer.B):
            state = optimizer.state[factor]
            assert state["state1"].dtype == state["state2"].dtype == torch.uint8
            assert sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2")) < 2.1 * factor.numel()
        assert optimizer.state[layer.gate]["state1"].dtype == torch.float32


def test_gates_in_one_flat_slice_stay_in_fp32_however_many_they_are() -> None:
    gate = nn.Parameter(torch.ones(10_000))
    optimizer = ProximalAdamW8bit([{"params": [gate], "threshold": 0.0, "threshold_mode": "budget"}], lr=0.01)
    gate.grad = torch.randn(10_000)
    optimizer.step()
    assert optimizer.state[gate]["state1"].dtype == torch.float32


def put_away_and_back(optimizer: Proximal, step: int) -> None:
    if step == 40:
        for group in optimizer.param_groups:
            for p in group["params"]:
                moments = {name: values.clone() for name, values in optimizer.moments(p).items()}
                assert all(values.dtype == torch.float32 and values.shape == p.shape for values in moments.values())
                optimizer.state[p].clear()
                optimizer.set_moments(p, step + 1, moments, of_gates="threshold_mode" in group)


def test_moments_put_away_and_back_change_no_bit() -> None:
    assert train(ProximalAdamW, put_away_and_back)[2] == train(ProximalAdamW)[2]


def test_moments_of_8_bits_put_away_and_back_are_rounded_once_more() -> None:
    one, _, expected = train(ProximalAdamW8bit)
    other, _, losses = train(ProximalAdamW8bit, put_away_and_back)
    assert losses[:41] == expected[:41]
    assert losses == pytest.approx(expected, rel=0.05)
    assert torch.equal(gates(one) == 0, gates(other) == 0)
