"""Exact merging: the original weight plus the sum of all updates, rounded once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codyra_llm.adapter.merging import sum_in_tiles
from codyra_llm.engine.zero import add_delta
from codyra_llm.ledger.entry import read_entry, summed, write_entry
from codyra_llm.models.load import load_model, original_weights
from tests.models import tiny_model

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
TASKS = 8


def small_updates(model: torch.nn.Module, seed: int, names: tuple[str, ...] = (Q, UP)) -> dict[str, Any]:
    """Returns updates of a hundredth of the weights' size, much of which bf16 rounds away."""
    torch.manual_seed(seed)
    updates = {}
    for name in names:
        weight = model.get_submodule(name).weight
        B, A = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
        updates[name] = B * (weight.std() / 100).float(), A
    return updates


@pytest.fixture
def entries(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / f"{number:02d}-task" for number in range(1, TASKS + 1)]
    for number, folder in enumerate(folders):
        write_entry(folder, small_updates(tiny_model(), number), "base")
    return folders


def merged(model_folder: Path, dtype: str, entries: list[Path], exact: bool) -> torch.nn.Module:
    model, original = load_model(str(model_folder), dtype), original_weights(str(model_folder))
    if exact:
        for name, factors in summed(entries):
            add_delta(model.get_submodule(name), *factors, original(f"{name}.weight"))
    else:
        for entry in entries:
            for name, factors in read_entry(entry).items():
                add_delta(model.get_submodule(name), *factors)
    return model


def test_in_fp32_it_equals_merging_in_place(tiny_folder: Path, entries: list[Path]) -> None:
    exact, in_place = (merged(tiny_folder, "float32", entries, how).state_dict() for how in (True, False))
    for name, weight in exact.items():
        assert float((weight - in_place[name]).norm()) <= 1e-6 * float(weight.norm())
    assert not torch.equal(exact[f"{Q}.weight"], tiny_model().state_dict()[f"{Q}.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_eight_tasks_cost_one_rounding(tiny_folder: Path, entries: list[Path], dtype: str) -> None:
    exact, in_place = (merged(tiny_folder, dtype, entries, how) for how in (True, False))
    base = tiny_model()
    for name in (Q, UP):
        true = base.get_submodule(name).weight.double()
        for B, A in (read_entry(entry)[name] for entry in entries):
            true = true + B.double() @ A.double()
        once = (true.to(getattr(torch, dtype)).double() - true).norm()
        errors = [(model.get_submodule(name).weight.double() - true).norm() for model in (exact, in_place)]
        assert errors[0] <= once * 1.001
        assert errors[1] > errors[0] * 1.5, "in place the error grows with every task"


@given(st.data())
def test_a_value_has_the_same_bits_whatever_part_is_asked_for(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 100)))
    out_features, in_features, rank = (data.draw(st.integers(1, 40)) for _ in range(3))
    weight, B, A = (
        torch.randn(out_features * in_features),
        torch.randn(out_features, rank),
        torch.randn(rank, in_features),
    )
    start = data.draw(st.integers(0, weight.numel()))
    stop = data.draw(st.integers(start, weight.numel()))

    def fill(part: torch.Tensor, begin: int) -> None:
        part.copy_(weight[begin : begin + len(part)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sum_in_tiles.__globals__, "TILE_BYTES", 500)
        whole = torch.cat([tile for _, tile in sum_in_tiles(fill, B, A, 0, weight.numel())])
        tiles = list(sum_in_tiles(fill, B, A, start, stop))
    torch.testing.assert_close(whole, weight + (B @ A).flatten(), atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat([whole[:0], *(tile for _, tile in tiles)]), whole[start:stop])
    assert [begin for begin, _ in tiles][:1] in ([], [start])


def test_only_what_an_entry_touches(tmp_path: Path) -> None:
    model = tiny_model()
    first, second = tmp_path / "01-a", tmp_path / "02-b"
    write_entry(first, small_updates(model, 0, (Q, UP)), "base")
    write_entry(second, small_updates(model, 1, (UP,)), "base")
    assert [name for name, _ in summed([first, second])] == [Q, UP]
    ((name, (B, A)),) = summed([first, second], of=second)
    assert (name, B.shape[1], len(A)) == (UP, 4, 4)


def test_pickled_weights_cannot_be_read_in_parts(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError):
        original_weights(str(tmp_path))
