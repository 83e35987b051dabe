"""The designs and bases of InfLoRA: public numbers, and properties."""

from pathlib import Path

import pytest
import torch

from codyra_llm.methods import designed, inflora
from tests.oracles import oracle


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
            assert is_free == bool(numbers[f"{of_task}/type_is_retain"])
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


def test_a_task_with_fewer_inputs_than_the_rank_does_not_see_protected_ones() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 4).double())[0]
    new = torch.randn(2, 12).double()
    A = inflora.design(new.T @ new, basis, is_free=False, rank=8)
    assert len(A) == 2
    assert float((A @ basis).abs().max()) < 1e-10


def test_the_directions_of_a_large_input_are_those_of_its_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, 200).double() * torch.arange(1, 201) ** -0.8
    moments = [part.T @ part / 150 for part in inputs.split(150)]

    def found() -> list[torch.Tensor]:
        basis, is_free = inflora.extended(moments[0], None, False, 0.99)
        A = inflora.design(moments[1], basis, is_free, 4)
        basis, is_free = inflora.extended(moments[1], basis, is_free, 0.999)
        assert not is_free
        return [A.T @ A, basis @ basis.T]

    whole = found()
    monkeypatch.setattr(designed, "LARGE", 100)
    monkeypatch.setattr(inflora, "GUESS", 10)  # enough for the first extension, too few for the second
    state = torch.get_rng_state()
    for leading, full in zip(found(), whole, strict=True):
        torch.testing.assert_close(leading, full, rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
