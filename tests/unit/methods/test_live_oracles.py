"""Methods that accumulate state in each step, or use components of earlier tasks: public numbers, properties."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codyra_llm.adapter.injection import find_targets
from codyra_llm.adapter.layer import CoDyRALinear, gated_layers, without_branches
from codyra_llm.adapter.offset import added
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.train import train_task
from codyra_llm.example import Example
from codyra_llm.methods import lora_null, moram, treelora
from tests.models import tiny_model
from tests.oracles import CLOSE, method_of, oracle


def test_the_term_of_treelora_with_the_recorded_draws(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = oracle(golden, "treelora")
    steps, modules = int(numbers["rounds_per_epoch"]), [f"m{level}" for level in range(int(numbers["depth"]))]
    method: Any = method_of("treelora", **{"treelora.strength": float(numbers["reg"])})
    for task in range(int(numbers["num_tasks"])):
        method.gathered, method._steps = {}, steps
        for step in range(steps):
            of_step = {key.split("/")[-1]: v for key, v in numbers.items() if key.startswith(f"task{task}/step{step}/")}
            rows = of_step["A_rows"]
            drawn = of_step["chosen_task_per_depth"].tolist() if task else []
            monkeypatch.setattr(treelora, "descend", lambda *given, drawn=drawn: drawn)
            method.end_step(1 + 0.1 * step)
            branches = {name: (torch.zeros(2, 1).double(), row[None]) for name, row in zip(modules, rows, strict=True)}
            value, gradients = method.penalty(branches)
            buffer = torch.cat([method.gathered[f"sum/{name}"] for name in modules])
            torch.testing.assert_close(buffer, of_step["current_grad_buffer"], **CLOSE)
            if task:
                assert value == pytest.approx(-float(of_step["reg_loss"]), rel=1e-9)
                ours = torch.cat([gradients[f"{name}.A"] for name in modules])
                torch.testing.assert_close(ours, of_step["grad_of_total_wrt_A"], **CLOSE)
                torch.testing.assert_close(-method.gathered["distances"], of_step["sim_sums"], **CLOSE)
        for name, vector in zip(modules, numbers[f"task{task}/stored_vector"], strict=True):
            torch.testing.assert_close(method.gathered[f"sum/{name}"][0], vector, **CLOSE)
            old = method.kept.get(f"past/{name}", vector[None, None][:0])
            method.kept[f"past/{name}"] = torch.cat([old, vector[None, None]])


def test_the_tree_of_treelora(golden: Path) -> None:
    numbers = oracle(golden, "treelora")
    stored = torch.stack([numbers[f"task{task}/stored_vector"] for task in range(4)])  # [tasks, modules, values]
    found = 0
    for last in range(1, 4):
        tree = json.loads(str(numbers[f"task{last}/tree_json"]))
        for place, node in tree.items():
            if len(node["tasks"]) > 1:
                level = len(place.removeprefix("root"))
                left, right, middle = treelora.split(stored[: last + 1, level], node["tasks"])
                assert (left, right) == (tree[f"{place}L"]["tasks"], tree[f"{place}R"]["tasks"])
                assert middle == pytest.approx(node["median_similarity"], rel=1e-9)
                found += 1
    assert found == 6


@pytest.mark.parametrize("repaired", [False, True])
def test_what_treelora_draws_and_where_it_pulls(repaired: bool) -> None:
    """As released, the farther task is drawn more often, and A is pushed away from a vector opposed to it."""
    method: Any = method_of("treelora", **{"treelora.repaired": repaired, "treelora.strength": 1.0})
    method._steps = 600
    near, far = torch.full((1, 1, 8), 0.1), torch.full((1, 1, 8), 2.0)
    method.kept = {"past/m": torch.cat([near, far])}
    for step in range(600):
        method.gathered["sum/m"] = torch.zeros(1, 8)  # the running sum stays at zero
        method.gathered["step"] = torch.tensor(step)
        method.end_step(1.0)
        method.penalty({"m": (torch.zeros(2, 1), torch.zeros(1, 8))})
    draws = method.gathered["draws"][:, 0].tolist()
    assert (draws[0] > 3 * draws[1]) if repaired else (draws[1] > 3 * draws[0]), draws
    v, opposed = torch.ones(1, 8), -torch.ones(1, 8)
    for A, is_toward in ((v, True), (opposed, repaired)):
        _, (gradient,) = treelora.pull([A], [v], 1.0, repaired)
        assert (float((gradient * v).sum()) < 0) == is_toward, "a step goes against the gradient"


def test_draws_of_treelora_depend_on_the_seed_alone() -> None:
    scores, past = torch.rand(5, 6), [torch.randn(5, 2, 4) for _ in range(6)]
    first, again, other = (treelora.descend(scores, past, random.Random(seed)) for seed in ("a", "a", "b"))
    assert first == again != other and set(first + other) <= set(range(5))


def test_the_atoms_of_moram(golden: Path) -> None:
    numbers = oracle(golden, "moram")
    scale = int(numbers["alpha"]) / int(numbers["rank"])  # the released code applies it to new atoms only
    base = nn.Linear(8, 6, bias=False).double()
    base.weight.data.copy_(numbers["weight"])
    settings = {"moram.atoms": int(numbers["topk"]), "moram.temperature": float(numbers["temperature"])}
    method: Any = method_of("moram", **settings, **{"moram.threshold": float(numbers["inference_threshold"])})
    for task in range(3):
        of_task = {key.split("/")[-1]: v for key, v in numbers.items() if key.startswith(f"task{task}/")}
        for products in (None, CoDyRALinear(base, 3).products):
            layer = CoDyRALinear(base, 3, train_gates=False, products=products)
            layer.A.data.copy_(of_task["A_new"])
            layer.B.data.copy_(scale * of_task["B_new"])
            method.kept = {"m.A": of_task["A_old"], "m.B": of_task["B_old"]} if task else {}
            method.start_branch("m", layer)
            y = layer(numbers["x"])
            torch.testing.assert_close(y.detach(), of_task["y_train"], **CLOSE)
            d_A, d_B = torch.autograd.grad(y.square().sum(), (layer.A, layer.B))
            torch.testing.assert_close(d_A, of_task["grad_A_new_of_sum_y2"], **CLOSE)
            torch.testing.assert_close(scale * d_B, of_task["grad_B_new_of_sum_y2"], **CLOSE)
            model = nn.ModuleDict({"m": layer})
            with without_branches(model):
                earlier = layer(numbers["x"]).detach()
        atoms = torch.cat([of_task["A_old"], of_task["A_new"]])
        values = torch.cat([of_task["B_old"], scale * of_task["B_new"]], dim=1)
        plain = nn.ModuleDict({"m": base})
        with added(plain, {"m": (values, atoms)}, method._mix(method.settings.threshold)):
            torch.testing.assert_close(base(numbers["x"]).detach(), of_task["y_eval"], **CLOSE)
        fresh = torch.cat([atoms, of_task["A_fresh"]])  # atoms of the next task, whose values are zero, take part
        none = torch.cat([of_task["B_old"], of_task["B_new"], torch.zeros(6, 3).double()], dim=1)
        method.kept = {"m.A": fresh, "m.B": none}
        with method.serving(plain, None):
            torch.testing.assert_close(
                base(numbers["x"]).detach(), of_task["y_eval_after_increment_fresh_atoms"], **CLOSE
            )
        if not task:
            torch.testing.assert_close(earlier, base(numbers["x"]).detach(), **CLOSE)


def test_the_order_of_atoms_changes_nothing() -> None:
    down = torch.randn(5, 7).double()
    order = torch.randperm(7)
    ours = moram.chosen(down, 3, 0.5, 0.1)
    torch.testing.assert_close(moram.chosen(down[:, order], 3, 0.5, 0.1), ours[:, order])
    assert ((ours != 0).sum(-1) <= 3).all() and not ours[down < 0].any()
    assert torch.equal(moram.chosen(down, 0, 0.5, 0.1), down)


def test_what_lora_null_starts_as_reads_what_is_used_least() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(50, 6).double() @ torch.randn(6, 10).double(), torch.randn(12, 10).double()
    directions = lora_null.least_used(inputs.T @ inputs / 50, 2)
    assert directions.shape[1] == 4, "six of ten directions are used"
    B, A = lora_null.null_part(weight, directions, 4)
    assert float((inputs @ A.T).abs().max()) < 1e-6
    torch.testing.assert_close(B @ A, weight @ directions @ directions.T, **CLOSE)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1))
    fewer = lora_null.null_part(weight, directions, 2)
    torch.testing.assert_close(fewer[0], B[:, :2])
    assert lora_null.least_used(inputs.T @ inputs / 50, 5).shape[1] == 5


def ids_of(text: Example) -> torch.Tensor:
    return torch.tensor([text.prompt + text.answer])


class OwnTexts:
    """Stand-in passes with fixed own texts and random diagonal second moments of every linear layer's inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def own_texts(self, count: int, length: int) -> list[Example]:
        return [Example([1], [2] * (length - 1))] * count

    def input_moments(self, rows: list[Example]) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(rows))
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        return {name: torch.diag(torch.rand(m.in_features)) for name, m in layers.items()}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_task_of_lora_null(frozen: bool) -> None:
    """The model's outputs are unchanged at the start, and the ledger's update is the change of the model."""
    model = tiny_model()
    ids = torch.randint(3, 700, (4, 12))
    before = model(input_ids=ids).logits.detach()
    method: Any = method_of("lora_null", **{"lora_null.freeze_inputs": frozen})
    method.before_training([], OwnTexts(model))
    ready = method.prepare(model, "first", 10)
    assert all(layer.A.requires_grad is not frozen and layer.B.any() for _, layer in gated_layers(model))
    torch.testing.assert_close(model(input_ids=ids).logits.detach(), before, atol=1e-5, rtol=0)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        ready.optimizer.step()
        ready.optimizer.zero_grad()
    after = model(input_ids=ids).logits.detach()
    _, updates = method.finish(model)
    with added(model, updates):
        torch.testing.assert_close(model(input_ids=ids).logits.detach(), after, atol=1e-4, rtol=0)
    assert float((after - before).abs().max()) > 1e-2


def test_the_average_of_an_update() -> None:
    """The update averages the products after each step with weights 0.9^(steps since), normalized to sum to one."""
    model, method = tiny_model(), method_of("ema", **{"ema.decay": 0.9})
    ready = method.prepare(model, "first", 10)
    seen: list[dict[str, torch.Tensor]] = []
    ids = torch.randint(3, 700, (4, 12))
    for _ in range(4):
        branches = {name: (layer.B.detach(), layer.A.detach()) for name, layer in gated_layers(model)}
        assert method.penalty(branches) == (0.0, {})
        model(input_ids=ids, labels=ids).loss.backward()
        ready.optimizer.step()
        ready.optimizer.zero_grad()
        seen.append({name: (layer.B @ layer.A).detach() for name, layer in gated_layers(model)})
    _, updates = method.finish(model)
    weights = torch.tensor([0.9**3, 0.9**2, 0.9, 1.0])
    weights /= weights.sum()
    for name, (B, A) in updates.items():
        expected = sum(weight * products[name] for weight, products in zip(weights, seen, strict=True))
        torch.testing.assert_close(B @ A, expected, atol=1e-7, rtol=1e-5)


def test_branches_learn_first_and_then_gates_alone() -> None:
    method: Any = method_of("codyra_refit", **{"codyra_refit.share": 0.4, "codyra_refit.learning_rate": 0.05})
    model = tiny_model()
    ready = method.prepare(model, "first", 10)
    ids = torch.randint(3, 700, (4, 12))
    branches, gates = [], []
    for step in range(10):
        ready.schedule.apply(ready.optimizer, step)
        model(input_ids=ids, labels=ids).loss.backward()
        ready.optimizer.step()
        ready.optimizer.zero_grad()
        layers = [layer for _, layer in gated_layers(model)]
        branches.append(torch.cat([layer.B.detach().flatten() for layer in layers] + [layers[0].A.detach().flatten()]))
        gates.append(torch.cat([layer.gate.detach() for layer in layers]))
    assert all(bool((gate == 1).all()) for gate in gates[:6]) and torch.equal(branches[5], branches[9])
    assert not torch.equal(branches[4], branches[5]) and not torch.equal(gates[6], gates[5])
    assert bool((gates[9] == 0).any()) and bool((gates[9] != 0).any())


def test_components_are_weighed_by_what_removing_them_changes() -> None:
    """For small branches, the worth predicts to second order how the NLL and the divergence change."""
    model, method = tiny_model(), method_of("codyra_weighed", **{"codyra_weighed.harm": 3.0})
    rows = [Example([1, 5 + row, 9], [7 + row, 2]) for row in range(4)]
    texts = [Example([1], list(range(20 * text, 20 * text + 9))) for text in range(1, 4)]
    weighed: Any = method
    weighed._texts = texts
    method.prepare(model, "first", 10)
    torch.manual_seed(0)
    layers = dict(gated_layers(model))
    for layer in layers.values():
        nn.init.normal_(layer.B, std=0.02)
    passes = ModelPasses(AnswerLoss(model), {}, 0, start())
    with torch.no_grad(), without_branches(model):
        before = [model(input_ids=ids_of(text)).logits.log_softmax(-1) for text in texts]

    @torch.no_grad()
    def objective() -> float:
        """Returns the NLL per answer token of the rows plus 3 KL per token of the texts."""
        nll = sum(float(passes.nll([row])) for row in rows)
        kl = 0.0
        for text, known in zip(texts, before, strict=True):
            now = model(input_ids=ids_of(text)).logits.log_softmax(-1)
            kl += float((known.exp() * (known - now))[0, :-1].sum())
        return nll / sum(row.learned for row in rows) + 3 * kl / sum(text.learned for text in texts)

    method.after_training(rows, passes)
    whole = objective()
    found: list[float] = []
    expected: list[float] = []
    for name, layer in layers.items():
        for component in range(layer.rank):
            with torch.no_grad():
                layer.gate[component] = 0
                expected.append(objective() - whole)
                layer.gate[component] = 1
            found.append(float(weighed._worth[f"{name}.gate"][component]))
    apart = (torch.tensor(found) - torch.tensor(expected)).norm() / torch.tensor(expected).norm()
    assert float(apart) < 0.1
    report, _ = method.finish(model)
    assert 0 < sum(module.rank for module in report) == sum(worth > 0 for worth in found) < len(found)


def test_atoms_that_no_token_chooses_end_a_task_as_they_began() -> None:
    """Atoms of an earlier task have much larger keys, so the new branches get no gradient and stay as they were."""
    model, method = (
        tiny_model(),
        method_of("moram", **{"moram.atoms": 2, "train.global_batch_size": 4, "train.per_device_train_batch_size": 4}),
    )
    for name in find_targets(model, method.adapter):
        weight: torch.Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        key = 1e3 * torch.randn(1, weight.shape[1])
        method.kept |= {f"{name}.A": torch.cat([key, -key, key, -key]), f"{name}.B": torch.zeros(len(weight), 4)}
    ready = method.prepare(model, "second", 2)
    batches = GlobalBatches([Example([1, 5, 9], [7, 2])] * 8, 4, 4, 1, 0, "second")
    train_task(model, ready.optimizer, None, batches, method.config.train, {}, start(), hooks=method)
    assert not any(layer.B.any() for _, layer in gated_layers(model))
