"""A model is identified by its weights, not by its name."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codyra_llm.errors import UserError
from codyra_llm.models.fingerprint import model_hash
from tests.models import tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))


def test_the_same_weights_have_the_same_hash_however_they_are_stored(tiny_folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shutil.copytree(tiny_folder, tmp_path / "copy")
    assert model_hash(str(tiny_folder)) == model_hash(str(tmp_path / "copy")) == model_hash(str(tmp_path / "shards"))
    model.bfloat16().save_pretrained(tmp_path / "bf16")
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    hashes = {model_hash(str(folder)) for folder in (tiny_folder, tmp_path / "bf16", tmp_path / "other")}
    assert len(hashes) == 3


def test_one_changed_bit_is_another_model_and_nothing_is_read_twice(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    file, first = folder / "model.safetensors", model_hash(str(folder))
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model_hash(str(folder)) == first, "path, size and time are as they were"
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert model_hash(str(folder)) != first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("where no folder can be made")
    assert model_hash(str(tiny_folder)) == first


def test_weights_of_other_kinds(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    found = model_hash(str(tmp_path / "pickled"))
    assert len(found) == 64
    weights = (tmp_path / "pickled" / "pytorch_model.bin").rename(tmp_path / "blob")  # as in the hub's cache
    (tmp_path / "pickled" / "pytorch_model.bin").symlink_to(weights)
    assert model_hash(str(tmp_path / "pickled")) == found
    model.save_pretrained(tmp_path / "eight")
    stored = load_file(tmp_path / "eight" / "model.safetensors")
    eight = {name: weight.to(torch.float8_e4m3fn) for name, weight in stored.items()}
    save_file(eight, tmp_path / "eight" / "model.safetensors")
    assert len(model_hash(str(tmp_path / "eight"))) == 64
    model.config.save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="none: cannot be loaded"):
        model_hash(str(tmp_path / "none"))
