"""Methods that use outputs, gradients or inputs, or that merge differently: public numbers, and properties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.example import Example
from codyra_llm.methods import dare, derpp, gem, inflora, lwf, magmax, memory, migu, ogd, ties
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import AnswerTokens, Slice, Slices
from tests.models import tiny_model
from tests.unit.methods.test_oracles import learn, method_of, oracle

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def cases(golden: Path, name: str, start: str = "case") -> list[dict[str, Any]]:
    """Returns the numbered cases of a golden file."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in oracle(golden, name).items():
        if key.startswith(start):
            case, _, rest = key.partition("/")
            found.setdefault(case, {})[rest] = value
    return list(found.values())


def in_parts(value: torch.Tensor, gradient: torch.Tensor) -> Slices:
    """Returns a parameter in two slices of different sizes, as on two ranks."""
    middle = len(value) // 3
    bounds = ((0, middle), (middle, len(value)))
    return Slices([Slice("m.A", value[a:b], gradient[a:b], a) for a, b in bounds], partitioned=False)


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


def test_the_projection_of_agem(golden: Path) -> None:
    for case in cases(golden, "agem"):
        method: Any = method_of("agem")
        method._reference = {"m.A": case["reference"]}
        gradient = case["gradient"].clone()
        method.before_step(in_parts(torch.zeros(12).double(), gradient))
        torch.testing.assert_close(gradient, case["result"], **CLOSE)


def test_the_projection_of_gem(golden: Path) -> None:
    projected = 0
    for case in cases(golden, "gem"):
        memories, margin = case["memories"], case["margin"]
        dots, gram = (memories @ case["gradient"]).numpy(), (memories @ memories.T).numpy()
        found = gem.weights(gram, dots, margin)
        np.testing.assert_allclose(found, case["dual"].numpy(), rtol=1e-7, atol=1e-9)
        method: Any = method_of("gem", **{"gem.margin": margin})
        method._references = [{"m.A": memory} for memory in memories]
        gradient = case["gradient"].clone()
        method.before_step(in_parts(torch.zeros(12).double(), gradient))
        expected = case["projected_mammoth"] if (dots < 0).any() else case["gradient"]
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)
        projected += bool((dots < 0).any())
        assert (memories @ gradient >= -1e-2 * abs(dots).max()).all()
    assert projected > 1


def test_what_was_released_as_gem_is_another_thing(golden: Path) -> None:
    """The published TRACE code doubles a conflict; ours removes it."""
    tried = 0
    for case in cases(golden, "gem_trace_code"):
        memories = case["memories"].reshape(-1, case["gradient"].numel())
        dots = memories @ case["gradient"].flatten()
        if not (dots < 0).any():
            continue
        weights = gem.weights((memories @ memories.T).numpy(), dots.numpy(), 0.0)
        after = memories @ (case["gradient"].flatten() + torch.from_numpy(weights) @ memories)
        assert float(after.min()) > -1e-2 * float(dots.abs().max())
        assert float(case["dot_after"].min()) < 1.5 * float(dots.min())
        tried += 1
    assert tried


def test_the_basis_of_ogd(golden: Path) -> None:
    numbers = oracle(golden, "ogd")
    first = ogd.extended(None, numbers["first_vectors"].T)
    both = ogd.extended(first, numbers["second_vectors"].T)
    for ours, theirs in ((first, numbers["basis_after_task1"]), (both, numbers["basis_after_task2"])):
        torch.testing.assert_close(ours.T @ ours, theirs @ theirs.T, **CLOSE)
        torch.testing.assert_close(ours @ ours.T, torch.eye(len(ours), dtype=ours.dtype), **CLOSE)
    assert len(ogd.extended(None, numbers["identical_columns"].T)) == 1, "what is the same adds nothing"
    method: Any = method_of("ogd", **{"ogd.project": "gradient"})
    method.kept = {"basis/m.A": both}
    gradient = numbers["gradient"].clone()
    method.before_step(in_parts(torch.zeros(15).double(), gradient))
    torch.testing.assert_close(gradient, numbers["projected_whole"], **CLOSE)
    assert float((numbers["basis_dot_projected_per_tensor"]).abs().max()) > 1e-3, "the released projection is none"


def test_rows_without_gradient_give_ogd_no_direction() -> None:
    """For example pictures of a task with one class, whose loss does not depend on the model."""
    none = ogd.extended(None, torch.zeros(3, 15))
    assert none.shape == (0, 15)
    torch.testing.assert_close(ogd.extended(none, torch.eye(15)[:2]), torch.eye(15, dtype=torch.float64)[:2])


def test_ogd_leaves_stored_outputs_to_first_order() -> None:
    """In a tanh network, the change of a stored output falls with the square of the step size."""
    torch.manual_seed(0)
    w, inputs = torch.randn(12, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def outputs(weights: torch.Tensor) -> torch.Tensor:
        return torch.tanh(inputs @ weights[:9].view(3, 3)) @ weights[9:]

    directions = torch.autograd.functional.jacobian(outputs, w)
    method: Any = method_of("ogd")
    method.kept = {"basis/m.A": ogd.extended(None, directions)}
    changes = []
    for size in (1e-2, 5e-3):
        value = w.clone()
        slices = in_parts(value, torch.zeros_like(value))
        method.before_step(slices)
        value += size * torch.sign(torch.randn(12, generator=torch.Generator().manual_seed(1))).double()  # as Adam
        method.after_step(slices)
        assert (value - w).abs().max() > size / 10
        changes.append(float((outputs(value) - outputs(w)).abs().max()))
    assert changes[0] / changes[1] == pytest.approx(4, rel=0.2)


def test_the_loss_of_derpp(golden: Path) -> None:
    """On a linear classifier with replayed rows in the batch, loss and step equal those of mammoth."""
    numbers = oracle(golden, "derpp")
    weight, bias = (numbers[name].clone().requires_grad_() for name in ("weight", "bias"))
    method: Any = method_of("derpp", **{"derpp.alpha": numbers["alpha"], "derpp.beta": numbers["beta"]})

    def logits(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.T + bias

    kept = torch.cat(
        [numbers["buffer_draw1_logits"], torch.arange(4).expand(3, 4).double()], dim=-1
    )  # all four logits, and their ids
    own = nn.functional.cross_entropy(logits(numbers["x"]), numbers["y"])
    again = nn.functional.cross_entropy(logits(numbers["buffer_draw2_x"]), numbers["buffer_draw2_y"])
    dark = derpp.distance(logits(numbers["buffer_draw1_x"]), kept) / 3
    loss = own + method.settings.alpha * dark + method.settings.beta * again
    assert float(loss.detach()) == pytest.approx(numbers["loss"], rel=1e-9)
    loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(weight - numbers["lr"] * weight.grad, numbers["weight_after_sgd_step"], **CLOSE)


def test_derpp_adds_to_the_tokens_of_kept_rows_alone() -> None:
    method: Any = method_of("derpp", **{"derpp.logits": 3, "derpp.alpha": 0.5, "derpp.beta": 0.25})
    method._own = 2
    before = torch.randn(2, 7)
    method.kept = {"logits.0": method._largest(before)}
    tokens = AnswerTokens(torch.tensor([1, 2, 3]), rows=torch.tensor([1, 2, 2]), places=torch.tensor([0, 0, 1]))
    same = torch.cat([torch.randn(1, 7), before])
    likelihood = nn.functional.cross_entropy(before, torch.tensor([2, 3]), reduction="sum")
    torch.testing.assert_close(method.output_loss(same, tokens, None), -0.75 * likelihood)
    assert method.output_loss(same[:1], AnswerTokens(*(each[:1] for each in vars(tokens).values())), None) is None


def test_the_designs_and_bases_of_inflora(golden: Path) -> None:
    numbers = oracle(golden, "inflora")
    kinds = set()
    for layer in (0, 1):
        basis: torch.Tensor | None = None
        is_free = False
        for task in range(int(numbers["total_sessions"])):
            of_task = f"task{task}/layer{layer}"
            moment = numbers[f"{of_task}/second_moment"]
            ours = inflora.design(moment, basis, is_free, int(numbers["rank"]))
            theirs = numbers[f"{of_task}/A_design"]
            torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, rtol=1e-7, atol=1e-9)
            basis, is_free = inflora.extended(moment, basis, is_free, numbers[f"task{task}/threshold"])
            expected = numbers[f"{of_task}/basis_after"]
            retained = str(np.load(golden / "baselines" / "inflora.npz")[f"{of_task}/type_is_retain"]) == "True"
            assert is_free == retained
            torch.testing.assert_close(basis @ basis.T, expected @ expected.T, rtol=1e-7, atol=1e-9)
            kinds.add(is_free)
    assert kinds == {True, False}


@pytest.mark.parametrize("dimensions", [2, 7])
def test_a_designed_branch_does_not_see_protected_inputs(dimensions: int) -> None:
    torch.manual_seed(dimensions)
    old = torch.randn(40, dimensions).double() @ torch.randn(dimensions, 10).double()  # inputs in a subspace
    directions = torch.linalg.svd(old.T @ old)[0]
    is_free = dimensions > 5
    basis = directions[:, dimensions:] if is_free else directions[:, :dimensions]
    new = torch.randn(40, 10).double()
    A = inflora.design(new.T @ new / 40, basis, is_free, 3)
    assert float((old @ A.T).abs().max()) < 1e-10
    assert float((new @ A.T).abs().max()) > 1e-2
    more, _ = inflora.extended(new.T @ new / 40, basis, is_free, 0.9)
    torch.testing.assert_close(more.T @ more, torch.eye(more.shape[1]).double(), atol=1e-10, rtol=0)


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


def test_rows_survive_being_kept() -> None:
    rows = [Example([1, 2, 3], [4, 5], ((0, 1),)), Example([6], [7, 8, 9]), Example([1], [2, 3], ((0, 1), (1, 2)))]
    assert memory.rows_of(memory.tensors_of(rows, "task"), "task") == rows


@pytest.mark.parametrize("name", ["agem", "gem", "ogd"])
def test_methods_with_memory_keep_as_many_rows_as_they_say(name: str) -> None:
    class Nothing:
        def gradient(self, rows: list[Example]) -> dict[str, torch.Tensor]:
            return {"m.A": torch.tensor([float(rows[0].prompt[0]), 1.0, 0.0, 0.0])}

    method: Any = method_of(name, **{f"{name}.rows": 2})
    for task in ("first", "second"):
        model = tiny_model()
        method.prepare(model, task, 3)
        method.after_training([Example([number], [1]) for number in range(1, 9)], Nothing())
        Method.finish.__get__(method)(model)
        if name == "ogd":
            assert len(method._directions) == 2
        else:
            assert len(method._new) == 2


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
