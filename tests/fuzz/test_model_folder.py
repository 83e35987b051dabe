"""A model folder with one invalid file is loaded, or refused with one line."""

import json
import shutil
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codyra_llm.models.load import load_model, original_weights
from codyra_llm.models.source import open_source
from tests.fuzz.outcome import outcome, thorough
from tests.fuzz.strategies import files_like

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def load(folder: Path) -> None:
    """Loads a model folder as a run does: tokenizer and configuration, the whole model, and part of one weight."""
    open_source(str(folder)).tokenizer  # noqa: B018
    model = load_model(str(folder))
    read = original_weights(str(folder))
    name, weight = next(iter(model.named_parameters()))
    part = torch.empty(4)
    read(name)(part, 0)
    assert torch.equal(part, weight.detach().flatten()[:4])


@pytest.mark.parametrize("file", FILES)
def test_metadata(file: str, tiny_folder: Path) -> None:
    document = json.loads((tiny_folder / file).read_text(encoding="utf-8"))

    @thorough
    @given(content=files_like(document))
    def check(content: bytes) -> None:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            shutil.copytree(tiny_folder, folder)
            (folder / file).write_bytes(content)
            outcome(lambda: load(folder))

    check()


def test_header_of_the_weights(tiny_folder: Path) -> None:
    content = (tiny_folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    document = json.loads(content[8 : 8 + size])

    @thorough
    @given(header=files_like(document), length=st.sampled_from([None, None, None, 0, 2**63, 2**64 - 1]))
    def check(header: bytes, length: int | None) -> None:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            shutil.copytree(tiny_folder, folder)
            start = struct.pack("<Q", len(header) if length is None else length)
            (folder / "model.safetensors").write_bytes(start + header + content[8 + size :])
            outcome(lambda: load(folder))

    check()


def test_index_of_the_weights(tiny_folder: Path) -> None:
    document = {
        "metadata": {"total_size": 1},
        "weight_map": {name: "part.safetensors" for name in load_model(str(tiny_folder)).state_dict()},
    }

    @thorough
    @given(content=files_like(document))
    def check(content: bytes) -> None:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            shutil.copytree(tiny_folder, folder)
            (folder / "model.safetensors").rename(folder / "part.safetensors")
            (folder / "model.safetensors.index.json").write_bytes(content)
            outcome(lambda: load(folder))

    check()
