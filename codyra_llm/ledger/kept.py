"""The state that a method keeps from finished tasks, besides the ledger: named tensors, written after each task."""

from pathlib import Path

import torch
from safetensors.torch import load, save_file

from codyra_llm.files import remove, replace_folder, sha256

FILE = "kept.safetensors"
LAST = 2  # as many as there are checkpoints, each of which may need a different one


def write_kept(folder: Path, entry: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Writes `<folder>/<entry>/kept.safetensors`, and removes those of all earlier entries except the previous one.

    Args:
        folder: contains a folder for each kept entry.
        entry: name of the last entry.
        tensors: unpartitioned, on the CPU.

    Returns:
        {path relative to the parent of `folder`: SHA-256 of the file}.
    """
    with replace_folder(folder / entry) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / FILE)
    for old in sorted(path for path in folder.iterdir() if path.name < entry)[: 1 - LAST]:
        remove(old)
    path = folder / entry / FILE
    return {str(path.relative_to(folder.parent)): sha256(path)}


def read_kept(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a file that `write_kept` wrote, without memory mapping, so that it can be removed."""
    return load(path.read_bytes())
