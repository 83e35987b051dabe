"""Methods that use outputs or inputs, or that merge differently: public numbers, and properties."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.example import Example
from codyra_llm.methods import dare, lwf, magmax, migu, ties
from tests.models import tiny_model
from tests.oracles import CLOSE, cases, learn, method_of, oracle


def test_distillation_is_kl_from_the_teacher_to_now(golden: Path) -> None:
    numbers = oracle(golden, "lwf")
    logits = numbers["new_logits"].clone().requires_grad_()
    found = lwf.distillation(logits, numbers["previous_logits"], numbers["temperature"])
    tokens = logits[..., 0].numel()
    assert float(found.detach()) / tokens == pytest.approx(
        numbers["textbook_forward_kl_mean_per_token_times_T2"], rel=1e-9
    )
    shifted = lwf.distillation(numbers["new_logits"] + 3, numbers["previous_logits"], numbers["temperature"])
    torch.testing.assert_close(shifted, found.detach(), **CLOSE)
    same = numbers["previous_logits"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(lwf.distillation(same, numbers["previous_logits"], 2.0), same)
    assert float(gradient.abs().max()) < 1e-14
    assert float(found.detach()) / 2 != pytest.approx(numbers["trace_kd_loss"]), "TRACE's is the reverse"


def test_magmax_and_ties_are_those_of_their_authors(golden: Path) -> None:
    numbers = oracle(golden, "merges")
    vectors = numbers["task_vectors"]
    chosen = torch.zeros_like(vectors[0])
    for vector in vectors:
        chosen = magmax.larger(chosen, vector)
    torch.testing.assert_close(chosen, numbers["magmax_independent"], **CLOSE)
    for percent in (20, 50):
        merged = ties.merge(vectors, percent / 100)
        torch.testing.assert_close(merged, numbers[f"ties/top{percent}/dis-mean"], **CLOSE)
        kept = ties.trimmed(vectors, percent / 100) != 0
        assert (kept <= numbers[f"ties/top{percent}/kept_mask"].bool()).all()


def test_magmax_of_a_run_is_that_of_its_sums(golden: Path) -> None:
    vectors = oracle(golden, "merges")["task_vectors"].view(4, 5, 8)
    combined = torch.zeros(5, 8, dtype=torch.float64)
    entries = []
    for vector in vectors:
        combined = magmax.larger(combined, combined + vector)
        entries.append((vector, torch.eye(8, dtype=torch.float64)))
        B, A = magmax.MagMax.combine(method_of("magmax").settings, [*entries, None])
        torch.testing.assert_close(B @ A, combined, **CLOSE)


def test_the_penalty_of_nlora(golden: Path) -> None:
    numbers = oracle(golden, "nlora")
    method = method_of("nlora", **{"nlora.strength": 1.0})
    branches = {f"m{i}": (numbers[f"m{i}/loranew_B"], numbers[f"m{i}/loranew_A"]) for i in (0, 1)}
    value, gradients = method.penalty(branches)
    assert value == pytest.approx(numbers["l1_of_BA"], rel=1e-9)
    assert value != pytest.approx(numbers["l1_loss_as_released"])
    for name, (B, A) in branches.items():
        B, A = B.clone().requires_grad_(), A.clone().requires_grad_()
        by_autograd = torch.autograd.grad((B @ A).abs().sum(), (B, A))
        for part, expected in zip("BA", by_autograd, strict=True):
            torch.testing.assert_close(gradients[f"{name}.{part}"], expected, **CLOSE)


def test_osft_lora_leaves_the_leading_singular_triples() -> None:
    model, method = tiny_model(), method_of("osft_lora", **{"osft_lora.keep": 0.4})
    weights = {
        name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    }
    for name, (B, A) in learn(method, model, "first").items():
        before = torch.linalg.svdvals(weights[name])
        after = torch.linalg.svdvals(weights[name] + B @ A)
        count = round(0.4 * min(weights[name].shape))
        left, _, right = torch.linalg.svd(weights[name], full_matrices=False)
        size = float((B @ A).norm())
        assert size > 0
        assert float((left[:, :count].T @ B @ A).norm()) < 1e-5 * size
        assert float((B @ A @ right[:count].T).norm()) < 1e-5 * size
        assert all(float((after - value).abs().min()) < 1e-4 for value in before[:count])


def test_slao_serves_the_average_and_starts_orthonormal() -> None:
    model, method = tiny_model(), method_of("slao")
    sums: dict[str, torch.Tensor] = {}
    learned: list[dict[str, torch.Tensor]] = []
    for number, task in enumerate(("first", "second", "the third"), 1):
        for name, (B, A) in learn(method, model, task).items():
            sums[name] = sums.get(name, 0) + B @ A
            model.get_submodule(name).weight.data.add_(B @ A)
        learned.append(dict(method.kept))
        assert int(method.kept["tasks"]) == number
    for name, total in sums.items():
        merged = learned[0][f"{name}.B"]
        for number, kept in enumerate(learned[1:], 2):
            merged = merged + (kept[f"{name}.B"] - merged) / number**0.5
        torch.testing.assert_close(total, merged @ learned[-1][f"{name}.A"], atol=1e-5, rtol=0)
    method.prepare(model, "fourth", 10)
    for _, layer in gated_layers(model):
        torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(4), atol=1e-5, rtol=0)


def test_full_fine_tuning_has_full_rank() -> None:
    updates = learn(method_of("seqft"), tiny_model(), "first")
    assert max(int(torch.linalg.matrix_rank(B @ A, atol=1e-6)) for B, A in updates.values()) > 4


def test_the_released_term_of_hide(golden: Path) -> None:
    numbers = oracle(golden, "hidelora")
    method: Any = method_of("hide", **{"hide.strength": 1.0})
    branches = {f"m{i}": (torch.zeros(2, 3).double(), numbers[f"m{i}/loranew_A"]) for i in (0, 1)}
    alone, _ = method.penalty(branches)
    assert alone == pytest.approx(numbers["contrastive_loss_when_lora_A_has_0_rows"], rel=1e-9)
    method.kept = {f"old/m{i}": numbers[f"m{i}/lora_A"] for i in (0, 1)}
    value, gradients = method.penalty(branches)
    assert value == pytest.approx(numbers["contrastive_loss"], rel=1e-9)
    for i in (0, 1):
        torch.testing.assert_close(gradients[f"m{i}.A"], numbers[f"m{i}/grad_loranew_A"], **CLOSE)


def test_a_thinned_update_is_right_on_the_mean(golden: Path) -> None:
    numbers = oracle(golden, "merges")
    vectors = numbers["task_vectors"]
    draw = torch.rand(4000, 40, generator=torch.Generator().manual_seed(0)).double()
    kept = dare.thinned(vectors[0].expand(4000, 40), draw, 0.8)
    assert float((kept != 0).double().mean(dim=0)[vectors[0] != 0].mean()) == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(kept.mean(dim=0), vectors[0], atol=0.2, rtol=0)
    theirs = numbers["dare/random_rate0.8_rescaled"]
    which = theirs != 0
    torch.testing.assert_close(dare.thinned(vectors[0], which.double(), 0.8)[which], theirs[which], **CLOSE)


def test_dare_makes_the_same_model_of_a_ledger_again() -> None:
    torch.manual_seed(0)
    entries = [(torch.randn(6, 2), torch.randn(2, 5)) for _ in range(3)]
    settings = method_of("dare").settings
    first, again = (dare.DARE.combine(settings, [*entries, None])[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first != 0, dare.DARE.combine(settings, entries[:1])[0] != 0)


def test_joint_training_serves_one_adapter() -> None:
    model, method = tiny_model(), method_of("joint")
    sums: dict[str, torch.Tensor] = {}
    for task in ("first", "second"):
        for name, (B, A) in learn(method, model, task).items():
            sums[name] = sums.get(name, 0) + B @ A
            model.get_submodule(name).weight.data.add_(B @ A)
    alone = learn(method_of("lora"), tiny_model(), "second")
    for name, total in sums.items():
        torch.testing.assert_close(total, alone[name][0] @ alone[name][1], atol=1e-4, rtol=1e-3)
    earlier = {"a": [Example([1], [2])], "b": [Example([3], [4])] * 2}
    assert len(method.replayed("c", earlier)) == 3 and method.lengthens


def test_the_penalty_of_ewc_lora(golden: Path) -> None:
    numbers = oracle(golden, "ewclora")
    method: Any = method_of("ewc_lora", **{"ewc_lora.strength": float(numbers["lambda"])})
    B, A = numbers["next_B"], numbers["next_A"]
    assert method.penalty({"m": (B, A)}) == (0.0, {}), "before the first task there is nothing to keep"
    method.kept = {"m": numbers["fisher_full_space"]}
    value, gradients = method.penalty({"m": (B, A)})
    assert value == pytest.approx(float(numbers["penalty"]), rel=1e-9)
    torch.testing.assert_close(gradients["m.A"], numbers["grad_next_A"], **CLOSE)
    torch.testing.assert_close(gradients["m.B"], numbers["grad_next_B"], **CLOSE)


def test_the_mask_of_migu(golden: Path) -> None:
    for case in cases(golden, "migu"):
        found = migu.mask(case["activation"], float(case["threshold"]))
        torch.testing.assert_close(found.float(), case["mask"])


def test_osft_comes_to_the_weights_of_projected_parameters(golden: Path) -> None:
    """30 AdamW steps with the projection in the forward pass equal the released form, which projects parameters."""
    numbers = oracle(golden, "osft")
    rate, beta1, beta2, decay, epsilon = numbers["adamw"].tolist()
    for case in cases(golden, "osft"):
        weight, kept = case["weight"], int(case["kept_rank"])
        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        base.weight.data.copy_(weight)
        model = nn.Sequential(CoDyRALinear(base, 2))
        method: Any = method_of("osft", **{"osft.train": 1 - kept / min(weight.shape)})
        with torch.no_grad():
            method.start_branch("0", model[0])
        torch.testing.assert_close(model(case["x"]), case["x"] @ weight.T, **CLOSE)
        how = {"lr": rate, "betas": (beta1, beta2), "eps": epsilon, "weight_decay": decay}
        optimizer = torch.optim.AdamW(model.parameters(), **how)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(case["x"]), case["y"]).backward()
            optimizer.step()
        _, updates = method.finish(model)
        B, A = updates["0"]
        expected = case["gradient_and_parameter/weight_after_30_steps"]
        torch.testing.assert_close(weight + B @ A, expected, rtol=1e-7, atol=1e-9)
        assert float((case["U_high"].T @ B @ A).norm()) < 1e-12 and float((B @ A @ case["V_high"].T).norm()) < 1e-12


@pytest.mark.parametrize("by", ["mean", "ridge"])
def test_a_router_is_that_of_all_tasks_at_once(by: str) -> None:
    """A router that learns task by task makes the same choices as one that sees all prompts together."""
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 12, generator=draw)
    states = [center + 0.6 * torch.randn(40, 12, generator=draw) for center in centers]
    seen: list[torch.Tensor] = []

    class Passes:
        def prompt_states(self, rows: object) -> torch.Tensor:
            return seen[-1]

    method: Any = method_of("routed", **{"routed.by": by, "routed.ridge": 0.5})
    for number, of_task in enumerate(states):
        seen.append(of_task)
        method.before_training([], Passes())
        learn(method, tiny_model(), f"task {number}")
    prompts = torch.randn(50, 12, generator=draw) + centers[torch.arange(50) % 3]
    seen.append(prompts)
    unit = [nn.functional.normalize(each.double()) for each in (*states, prompts)]
    X, Y = torch.cat(unit[:3]), torch.eye(3).double().repeat_interleave(40, dim=0)
    weights = torch.linalg.inv(X.T @ X + 0.5 * torch.eye(12)) @ X.T @ Y
    if by == "mean":
        weights = nn.functional.normalize(torch.stack([each.mean(0) for each in unit[:3]])).T
    expected = [f"task {number}" for number in (unit[3] @ weights).argmax(1).tolist()]
    found = method.routes([], Passes())
    assert found == expected
    assert sum(name == f"task {number % 3}" for number, name in enumerate(found)) > 40
    assert method_of("routed").routes([], Passes()) is None
