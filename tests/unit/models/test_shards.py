"""Our own writing and reading of safetensors files, compared with the safetensors library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from codyra_llm.models.shards import (
    DTYPES,
    ShardReader,
    checkpoint_tensors,
    is_git_lfs_pointer,
    names_in_files,
    set_aside,
    write_shards,
)
from tests.models import tiny_model


def tensors() -> dict[str, torch.Tensor]:
    """A tensor of each dtype, in odd shapes, including an empty one and a scalar."""
    torch.manual_seed(0)
    shapes = [(), (3,), (5, 7), (0, 4), (2, 3, 5), (1,), (9,), (4, 4), (11,), (6,)]
    return {
        f"layer.{number}": (torch.randn(shape) * 9).to(dtype)
        for number, (shape, dtype) in enumerate(zip(shapes, DTYPES.values(), strict=True))
    }


def layout_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.to("meta") for name, weight in weights.items()}


@pytest.mark.parametrize("largest_file", [10**9, 200, 1])
def test_the_library_reads_what_is_written(largest_file: int, tmp_path: Path) -> None:
    weights = {name: weight for name, weight in tensors().items() if weight.numel()}
    backwards = reversed(list(weights.items()))
    write_shards(tmp_path, layout_of(weights), backwards, largest_file)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (largest_file < 10**9)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name], weight) and found[name].dtype == weight.dtype
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert {name: (tmp_path / file).name for name, file in index["weight_map"].items()} == index["weight_map"]
        assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())


@given(start=st.integers(0, 30), length=st.integers(0, 30))
def test_a_slice_is_that_of_the_flattened_tensor(
    start: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "slice.safetensors"
    weight = torch.arange(30, dtype=torch.bfloat16).view(5, 6)
    if not file.exists():
        save_file({"other": torch.ones(3), "w": weight}, file)
    part = torch.empty(min(length, 30 - start), dtype=torch.float64)
    ShardReader([file]).read("w", part, start)
    assert torch.equal(part, weight.flatten()[start : start + length].double())


def test_a_digest_is_of_the_tensor_wherever_it_lies(tmp_path: Path) -> None:
    weight = torch.randn(3, 5)
    save_file({"a": torch.ones(7), "w": weight}, tmp_path / "one.safetensors")
    save_file({"w": weight}, tmp_path / "two.safetensors")
    save_file({"w": weight.T.contiguous()}, tmp_path / "three.safetensors")
    one, two, three = (ShardReader([tmp_path / f"{name}.safetensors"]).digest("w") for name in ("one", "two", "three"))
    assert one == two != three


def test_what_waits_without_a_name_comes_back(tmp_path: Path) -> None:
    weights = {name: weight for name, weight in tensors().items() if weight.numel()}
    layout, again = set_aside(tmp_path, weights.items())
    assert not list(tmp_path.iterdir())
    assert {name: (like.shape, like.dtype) for name, like in layout.items()} == {
        name: (weight.shape, weight.dtype) for name, weight in weights.items()
    }
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again)


def whole(file: Path) -> bytes:
    save_file({"w": torch.ones(4)}, file)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (lambda content: content[:-1], "'w' is cut off"),
        (lambda content: content[:6], "not a safetensors file, or is cut off"),
        (lambda content: b"\xff" * 8 + content[8:], "not a safetensors file, or is cut off"),
        (lambda content: content[:8] + b"{" * (len(content) - 8), "its header is damaged"),
        (lambda content: content.replace(b"F32", b"F99"), "'w' is 'F99'"),
        (lambda content: content.replace(b"[0,16]", b"[0,12]"), "'w' is cut off"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole(cut: Callable[[bytes], bytes], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(cut(whole(file)))
    with pytest.raises(ValueError, match=problem):
        ShardReader([file])


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty").touch()
    assert is_git_lfs_pointer(tmp_path / "pointer") and not is_git_lfs_pointer(tmp_path / "empty")


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gemma3", "qwen3"])
def test_tensors_and_names_are_those_of_save_pretrained(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    saved, ours = load_file(tmp_path / "model.safetensors"), checkpoint_tensors(model)
    names = names_in_files(model, ours)
    assert {names[name] for name in ours} == saved.keys()
    assert all(torch.equal(saved[names[name]], tensor) for name, tensor in ours.items())
