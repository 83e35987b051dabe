"""Methods that keep rows, gradients or logits of earlier tasks: public numbers, and properties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codyra_llm.example import Example
from codyra_llm.methods import derpp, gem, memory, ogd
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import AnswerTokens, Slice, Slices
from tests.models import tiny_model
from tests.oracles import CLOSE, cases, method_of, oracle


def in_parts(value: torch.Tensor, gradient: torch.Tensor) -> Slices:
    """Returns a parameter in two slices of different sizes, as on two ranks."""
    middle = len(value) // 3
    bounds = ((0, middle), (middle, len(value)))
    return Slices([Slice("m.A", value[a:b], gradient[a:b], a) for a, b in bounds], partitioned=False)


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
