"""The directions of contrastive branches."""

import numpy as np
import pytest
import torch

from codyra_llm.methods import designed, inflora
from codyra_llm.methods.contrast_lora import LONGEST, contrast


def moment_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.double().T @ inputs.double() / len(inputs)


def energy(A: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    return (A @ moment * A).sum(1)


def test_the_directions_are_those_of_contrastive_pca() -> None:
    torch.manual_seed(0)
    new, old = (moment_of(torch.randn(60, 12) @ torch.randn(12, 12)) for _ in range(2))
    A = contrast(new, 2.0 * old, 4)
    directions = (A / A.norm(dim=1, keepdim=True)).numpy()
    values, vectors = np.linalg.eig((new - 2.0 * old).numpy())
    theirs = vectors[:, np.argsort(-values)[:4]].T
    np.testing.assert_allclose(np.abs(directions @ theirs.T), np.eye(4), atol=1e-9)


def test_a_task_has_the_energy_of_a_random_row_along_each() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 30) * torch.linspace(1.0, 2.0, 30)
    moment = moment_of(inputs)
    expected = moment.trace() / 30 / 3
    A = contrast(moment, torch.zeros_like(moment), 8)
    torch.testing.assert_close(energy(A, moment), expected.expand(8))
    drawn = torch.empty(20000, 30).uniform_(-(30**-0.5), 30**-0.5).double()  # as LoRA draws A
    torch.testing.assert_close(energy(drawn, moment).mean(), expected, rtol=0.02, atol=0)


def test_no_row_is_longer_than_the_limit() -> None:
    moment = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    A = contrast(moment, torch.diag(torch.tensor([9.0, 0.0], dtype=torch.float64)), 1)
    assert float(A.norm()) == pytest.approx(LONGEST / 3**0.5)


def test_directions_without_inputs_are_left_out() -> None:
    torch.manual_seed(0)
    moment = moment_of(torch.randn(3, 12))
    assert contrast(moment, torch.zeros_like(moment), 8).shape == (3, 12)


def test_very_large_activations_that_all_inputs_share_are_not_read() -> None:
    """They have nearly all of the energy: a protected share of it (InfLoRA) leaves earlier inputs unprotected."""
    torch.manual_seed(0)
    shared = torch.randn(400, 20).double()
    shared[:, 0] = 1000.0
    old, new = shared.clone(), shared.clone()
    old[:, 5:8] *= 10.0
    new[:, 10:13] *= 5.0
    first, second = moment_of(old), moment_of(new)
    ours = contrast(second, 3.0 * first, 3)
    theirs = inflora.design(second, *inflora.extended(first, None, False, 0.99), 3)
    read = {
        name: float((energy(A, first) / energy(A, second)).mean()) for name, A in (("ours", ours), ("theirs", theirs))
    }
    assert read["ours"] < 0.1 < 1.0 < read["theirs"]


def test_the_directions_of_a_large_input_are_those_of_its_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    new, old = (moment_of(torch.randn(500, 90) * torch.arange(1, 91) ** -0.8) for _ in range(2))
    whole = contrast(new, 3.0 * old, 6)
    monkeypatch.setattr(designed, "LARGE", 64)
    torch.testing.assert_close(contrast(new, 3.0 * old, 6).abs(), whole.abs(), rtol=1e-8, atol=1e-10)
    few = moment_of(torch.randn(4, 90))
    assert contrast(few, torch.zeros_like(few), 8).shape == (4, 90)
