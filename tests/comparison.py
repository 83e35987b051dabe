"""Assertions that two runs have the same result, and that two model folders have the same files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def assert_same_result(folder: Path, expected_folder: Path) -> None:
    """Asserts equal losses and weights (to 1e-5), equal scores, and the same kept rank of each kind of projection."""
    results, expected = (json.loads((path / "results.json").read_text()) for path in (folder, expected_folder))
    assert [entry["task"] for entry in results["losses"]] == [entry["task"] for entry in expected["losses"]]
    for ours, theirs in zip(results["losses"], expected["losses"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert results["matrix"] == expected["matrix"]
    assert [row["by_projection"] for row in results["ranks"]] == [row["by_projection"] for row in expected["ranks"]]
    saved, weights = (load_file(path / "model" / "model.safetensors") for path in (folder, expected_folder))
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-5, rtol=0)


def assert_same_files(folder: Path, expected_folder: Path) -> None:
    """Asserts that two model folders have the same files, byte for byte, except for the model card."""
    names = sorted(path.name for path in expected_folder.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in set(names) - {"README.md"}:
        assert (folder / name).read_bytes() == (expected_folder / name).read_bytes(), name
