"""Safetensors files, read by flat slice and written tensor by tensor: at most one tensor is in memory.

A file consists of the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and offsets of each
tensor) and the values in row-major order, so a flat slice of a tensor is one range of bytes. Files are read, not
memory-mapped: the pages that a mapping touches would count as memory of the process.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from codyra_llm.text import shown

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
READ_AT_ONCE = 4_000_000  # values


@dataclass(frozen=True)
class _Stored:
    file: Path
    offset: int
    dtype: torch.dtype
    shape: torch.Size


class ShardReader:
    """The tensors of some safetensors files.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is incomplete, or contains an unknown dtype.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._stored = {name: stored for file in files for name, stored in _read_header(file)}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each tensor, by name."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def read(self, name: str, part: torch.Tensor, start: int) -> None:
        """Fills `part` [values], of any dtype and device, with the flattened tensor's values from `start` on."""
        stored = self._stored[name]
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset + start * stored.dtype.itemsize)
            for piece in part.split(READ_AT_ONCE):
                values = torch.empty(piece.shape, dtype=stored.dtype)
                if stream.readinto(_bytes_of(values)) != values.nbytes:
                    raise ValueError(f"{stored.file} ends within {name}")
                piece.copy_(values)

    def digest(self, name: str) -> str:
        """Returns the hexadecimal SHA-256 of a tensor's dtype, shape and values, independent of its file."""
        stored = self._stored[name]
        digest = hashlib.sha256(f"{stored.dtype} {list(stored.shape)}".encode())
        left = math.prod(stored.shape) * stored.dtype.itemsize
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset)
            while block := stream.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()


def checkpoint_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers in a checkpoint of the model (not copies), in its order; tied ones once."""
    tensors = model.state_dict(keep_vars=True)  # called once: quantized layers create some tensors at each call
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}


def names_in_files(model: PreTrainedModel, layout: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns the name in files of each tensor, by its name in the model.

    transformers renames some tensors on loading. If it also splits or joins tensors, files have the model's own names,
    which it can load as well.
    """
    own = {id(tensor): name for name, tensor in layout.items()}
    stored = revert_weight_conversion(model, dict(layout))
    if {id(tensor) for tensor in stored.values()} != own.keys():
        return {name: name for name in layout}
    return {own[id(tensor)]: name for name, tensor in stored.items()}


def write_shards(
    folder: Path,
    layout: Mapping[str, torch.Tensor],
    weights: Iterable[tuple[str, torch.Tensor]],
    largest_file: int,
) -> None:
    """Writes model.safetensors, or several such files and their index.

    Args:
        folder: the folder to write to.
        layout: name, dtype and shape of each tensor, on the meta device.
        weights: the same names with their values, in any order; each is written before the next is requested.
        largest_file: bytes of values in a file; a larger model gets several files, a larger tensor a file of its own.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    split = split_state_dict_into_shards_factory(
        dict(layout),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=largest_file,
    )
    places: dict[str, tuple[Path, int]] = {}
    for file_name, names in split.filename_to_tensors.items():
        begins = _write_header(folder / file_name, {name: layout[name] for name in names})
        places |= {name: (folder / file_name, begin) for name, begin in begins.items()}
    for name, tensor in weights:
        file, begin = places[name]
        with file.open("r+b") as stream:
            stream.seek(begin)
            stream.write(_bytes_of(tensor))
    if split.is_sharded:
        total = {"total_parameters": sum(tensor.numel() for tensor in layout.values()), **split.metadata}
        index = {"metadata": total, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def set_aside(
    folder: Path, weights: Iterable[tuple[str, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], Iterator[tuple[str, torch.Tensor]]]:
    """Returns (layout, the same weights) for tensors whose sizes are not known before they are computed.

    All of them are stored in an anonymous temporary file on the disk of `folder`, which disappears with the process.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    stream, layout = tempfile.TemporaryFile(dir=folder), {}  # noqa: SIM115 open until all is read again
    for name, tensor in weights:
        stream.write(_bytes_of(tensor))
        layout[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    stream.seek(0)

    def again() -> Iterator[tuple[str, torch.Tensor]]:
        with stream:
            for name, like in layout.items():
                tensor = torch.empty_like(like, device="cpu")
                stream.readinto(_bytes_of(tensor))
                yield name, tensor

    return layout, again()


def _read_header(file: Path) -> Iterable[tuple[str, _Stored]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if is_git_lfs_pointer(file):
            raise ValueError(f"{file} is a pointer of git-lfs and not the file itself; run `git lfs pull` beside it")
        if 8 + length > size:
            raise ValueError(f"{file} is not a safetensors file, or is cut off")
        content = stream.read(length)
    try:
        entries = [(name, entry) for name, entry in json.loads(content).items() if name != "__metadata__"]
        stored = [(name, _stored(file, name, entry, 8 + length, size)) for name, entry in entries]
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError, json.JSONDecodeError):
        raise ValueError(f"{file}: its header is damaged, so it is no safetensors file") from None
    yield from stored


def _stored(file: Path, name: str, entry: dict[str, Any], begin: int, size: int) -> _Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{file}: {shown(name)} is {shown(entry['dtype'])}")
    dtype, shape = DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    start, stop = entry["data_offsets"]
    if min(start, *shape, 0) < 0 or stop - start != math.prod(shape) * dtype.itemsize or begin + stop > size:
        raise ValueError(f"{file}: {shown(name)} is cut off")
    return _Stored(file, begin + start, dtype, shape)


def is_git_lfs_pointer(file: Path) -> bool:
    """True if a file is a git-lfs pointer, which git leaves in place of a large file that was not fetched."""
    with file.open("rb") as stream:
        return stream.read(40).startswith(b"version https://git-lfs.github.com/")


def _write_header(file: Path, layout: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Writes the header of a file; returns the offset of each tensor's values."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name in sorted(layout, key=lambda name: (-layout[name].itemsize, name)):  # widest first keeps all aligned
        tensor = layout[name]
        begins[name], end = end, end + tensor.nbytes
        place = [begins[name], end]
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in begins.items()}


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
