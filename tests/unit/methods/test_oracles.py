"""The methods' own parts compared with the published code, and their defining properties."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import load_config, to_yaml
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.files import read_yaml
from codyra_llm.methods import METHODS, Method
from codyra_llm.methods.base import Needs
from codyra_llm.methods.hooks import Slice, Slices
from codyra_llm.methods.replay import ReplaySettings, reservoir
from tests.models import tiny_model
from tests.oracles import learn, method_of, oracle


def test_the_penalty_of_olora(golden: Path) -> None:
    numbers = oracle(golden, "olora")
    method = method_of("olora", **{"olora.orthogonality": numbers["lambda_1"], "olora.norms": numbers["lambda_2"]})
    method.kept = {f"m{i}.A": numbers[f"m{i}/lora_A"] for i in (0, 1)}
    branches = {f"m{i}": (numbers[f"m{i}/loranew_B"], numbers[f"m{i}/loranew_A"]) for i in (0, 1)}
    value, gradients = method.penalty(branches)
    expected = numbers["lambda_1"] * numbers["orthogonal_loss"] + numbers["lambda_2"] * numbers["l2_loss"]
    assert value == pytest.approx(expected, rel=1e-9)
    for i in (0, 1):
        for part in "AB":
            torch.testing.assert_close(
                gradients[f"m{i}.{part}"], numbers[f"m{i}/grad_loranew_{part}"], rtol=1e-9, atol=1e-12
            )


def test_its_own_gradient_makes_branches_orthogonal() -> None:
    torch.manual_seed(0)
    method = method_of("olora")
    method.kept = {"m.A": torch.randn(4, 16)}
    A = torch.randn(3, 16)
    begin = float((method.kept["m.A"] @ A.T).abs().sum())
    for _ in range(400):
        A -= 0.004 * method.penalty({"m": (torch.zeros(8, 3), A)})[1]["m.A"]
    assert float((method.kept["m.A"] @ A.T).abs().sum()) < 0.05 * begin


def slices_of(values: torch.Tensor, gradients: torch.Tensor, bounds: list[int]) -> Slices:
    """Returns a parameter partitioned into slices, as by ZeRO."""
    starts = pairwise(bounds)
    return Slices([Slice("m.A", values[a:b], gradients[a:b], a) for a, b in starts], partitioned=False)


@pytest.mark.parametrize("bounds", [[0, 24], [0, 7, 24]])
@pytest.mark.parametrize("task", [1, 2])
def test_the_penalty_of_ewc(golden: Path, task: int, bounds: list[int]) -> None:
    numbers = oracle(golden, "ewc")
    method = method_of("ewc", **{"ewc.strength": 2 * numbers["e_lambda"]})  # the published code has no factor 1/2
    of_task = {key.split("/")[1]: value for key, value in numbers.items() if key.startswith(f"task{task}/")}
    method.kept = {"m.A": of_task["params"], "m.A.fisher": of_task["fisher_accumulated"]}
    gradients = torch.zeros(24, dtype=torch.float64)
    method.before_step(slices_of(of_task["moved_params"], gradients, bounds))
    torch.testing.assert_close(gradients, of_task["penalty_grads"], rtol=1e-9, atol=1e-12)


def test_ewc_rests_between_two_tasks_as_their_curvature_has_it() -> None:
    """F = (10, 0), anchor 0, second loss |theta - 1|^2 / 2: the optimum of loss + penalty is (1/11, 1)."""
    method = method_of("ewc")
    method.kept = {"m.A": torch.zeros(2), "m.A.fisher": torch.tensor([10.0, 0.0])}
    theta = torch.full((2,), 0.5)
    for _ in range(500):
        gradient = theta - 1
        method.before_step(slices_of(theta, gradient, [0, 2]))
        theta -= 0.05 * gradient
    torch.testing.assert_close(theta, torch.tensor([1 / 11, 1.0]), atol=1e-5, rtol=0)


class OneRowAtATime:
    """Stand-in passes for the golden classifier: the mean over samples of a function of each sample's gradient."""

    def __init__(self, of_task: dict[str, Any]) -> None:
        self.of_task = of_task

    def mean_of_gradients(self, rows: list[Any], of: object) -> dict[str, torch.Tensor]:
        flat = self.of_task["params"].clone().requires_grad_()
        x, y = self.of_task["x"].reshape(-1, 5), self.of_task["y"].flatten()
        total = torch.zeros_like(flat)
        for row, label in zip(x, y, strict=True):
            logits = flat[:20].view(4, 5) @ row + flat[20:]
            total += of(torch.autograd.grad(nn.functional.cross_entropy(logits, label), flat)[0])
        return {"m.A": total / len(y)}


def test_fisher_information_is_of_single_rows(golden: Path) -> None:
    numbers = oracle(golden, "ewc")
    of_task = {key.split("/")[1]: value for key, value in numbers.items() if key.startswith("task1/")}
    method = method_of("ewc")
    method.after_training([Example([1], [2])] * 12, OneRowAtATime(of_task))
    measured = vars(method)["_measured"]["m.A"]
    torch.testing.assert_close(measured, of_task["fisher_empirical_per_sample_this_task"], rtol=1e-9, atol=1e-15)
    assert not torch.allclose(measured, of_task["fisher_trace_batch_gradients_this_task"])


@pytest.mark.parametrize("case", [0, 1])
def test_a_reservoir_is_that_of_mammoth(golden: Path, case: int) -> None:
    numbers = {k.split("/")[1]: v for k, v in oracle(golden, "reservoir").items() if k.startswith(f"case{case}/")}
    draws = numpy.random.RandomState(int(numbers["numpy_legacy_seed"]))
    rows = len(numbers["slot_of_each_sample"])
    held = reservoir(rows, int(numbers["buffer_size"]), lambda last: int(draws.randint(0, last + 1)))
    assert held == numbers["kept_samples"].tolist()


@pytest.mark.parametrize("settings", [ReplaySettings(fraction=0.1), ReplaySettings(reservoir=5)])
def test_every_row_is_kept_with_the_same_probability(settings: ReplaySettings) -> None:
    rows = [Example([number], [0]) for number in range(50)]
    counts = [0] * 50
    for seed in range(2000):
        kept = METHODS["replay"](SimpleNamespace(seed=seed, replay=settings)).replayed("b", {"a": rows})
        assert len(kept) == 5
        for row in kept:
            counts[row.prompt[0]] += 1
    assert all(0.08 < count / 2000 < 0.12 for count in counts)  # 0.1 within three standard deviations


def test_entries_of_seqlora_telescope_to_one_adapter() -> None:
    """The sum of three tasks' entries has the rank of one adapter, and equals the update of one continued adapter."""
    model, method = tiny_model(), method_of("seqlora")
    sums: dict[str, torch.Tensor] = {}
    for task in ("first", "second", "the third"):
        for name, (B, A) in learn(method, model, task).items():
            sums[name] = sums.get(name, 0) + B @ A
            model.get_submodule(name).weight.data.add_(B @ A)
    for name, total in sums.items():
        B, A = method.kept[f"{name}.B"], method.kept[f"{name}.A"]
        torch.testing.assert_close(total, B @ A, atol=1e-6, rtol=0)
        assert int(torch.linalg.matrix_rank(total, atol=1e-5)) <= 4
    fresh, lora = tiny_model(), method_of("lora")
    apart: dict[str, torch.Tensor] = {}
    for task in ("first", "second"):
        for name, (B, A) in learn(lora, fresh, task).items():
            apart[name] = apart.get(name, 0) + B @ A
    assert max(int(torch.linalg.matrix_rank(total, atol=1e-5)) for total in apart.values()) == 8


def test_a_continued_branch_starts_as_no_change() -> None:
    model, method = tiny_model(), method_of("seqlora")
    for name, (B, A) in learn(method, model, "first").items():
        model.get_submodule(name).weight.data.add_(B @ A)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        method.prepare(model, "second", 10)
        assert any(layer.B.any() for _, layer in gated_layers(model))
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "seqlora", "merge.scale": 0.5}, "method seqlora: .*merge.scale must be 1"),
        ({"method": "ewc", "merge.scale": 0.5}, "method ewc: .*merge.scale must be 1"),
        ({"method": "olora", "extend": "runs/x/ledger"}, "method olora: .*leave extend empty"),
        ({"method": "replay", "extend": "runs/x/ledger"}, "method replay: .*leave extend empty"),
    ],
)
def test_what_a_method_cannot_run_with_is_refused(settings: dict[str, Any], reason: str) -> None:
    config = load_config(None, settings)
    with pytest.raises(UserError, match=reason):
        METHODS[config.method](config).check_run(0)


def test_needs_of_a_method_are_checked() -> None:
    class Whole(Method):
        name = "whole"
        needs = Needs(zero_stages=(0, 1), quantized_base=False)

    config = SimpleNamespace(
        model=SimpleNamespace(quantization="nf4"), merge=SimpleNamespace(scale=1), extend=None, whole=None
    )
    with pytest.raises(UserError, match="method whole: it cannot run at ZeRO stage 3; use 0 or 1"):
        Whole(config).check_run(3)
    with pytest.raises(UserError, match="method whole: it cannot train a quantized base"):
        Whole(config).check_run(1)


def test_a_saved_configuration_has_the_section_of_its_method_alone(tmp_path: Path) -> None:
    config = load_config(None, {"method": "ewc", "ewc.rows": 9})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert {"ewc", "olora", "replay"} & set(read_yaml(tmp_path / "config.yaml")) == {"ewc"}
    assert load_config(tmp_path / "config.yaml") == config


def test_settings_of_another_method_are_refused() -> None:
    with pytest.raises(UserError, match="ewc: is set, but method is lora"):
        load_config(None, {"method": "lora", "ewc.strength": 2.0})
    methods = "agem, codyra, codyra_contrast, codyra_protected, codyra_refit, codyra_weighed, contrast_lora"
    with pytest.raises(UserError, match=f"method is 'magic'; there are {methods}"):
        load_config(None, {"method": "magic"})
