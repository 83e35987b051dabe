"""Data sets stored as arrays: MNIST's IDX files and CIFAR100's pickles, which are read without running their code.

A pickle names functions to call. The unpickler in this module knows three names, which numpy arrays are made of, and
substitutes its own classes for them: a file can build arrays of bytes, lists and dicts, and nothing else.
"""

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, Literal

import numpy

from codyra_llm.errors import UserError
from codyra_llm.files import read_bytes
from codyra_llm.text import shown

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MNIST_CLASSES = [f"{number} - {word}" for number, word in enumerate(DIGITS)]
SIDE = 32  # of CIFAR's pictures
LARGEST_PICKLE = 2**29  # bytes; CIFAR100's training file has 155 MB


def read_mnist(folder: Path, split: str) -> tuple[numpy.ndarray, list[int]]:
    """Returns (uint8 [n, height, width], labels) of MNIST's train or test (t10k) files, plain or gzip-compressed.

    Raises:
        UserError: a file is missing, damaged or truncated, or pictures and labels do not match.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images, image_file = read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    labels, label_file = read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(f"{label_file}: has {len(labels)} labels for the {len(images)} pictures of {image_file.name}")
    if len(labels) and labels.max() >= len(DIGITS):
        row = int(labels.argmax())
        raise UserError(f"{label_file} row {row + 1}: label {labels[row]}; labels go from 0 to {len(DIGITS) - 1}")
    return images, labels.tolist()


def read_idx(file: Path, dimensions: int) -> tuple[numpy.ndarray, Path]:
    """Reads an IDX file, or the same file with .gz; returns (uint8 array, path of the file that was read).

    IDX: bytes 0, 0, 8 (unsigned bytes), number of dimensions; each size as a big-endian 32-bit integer; the values.

    Raises:
        UserError: it cannot be read, is no IDX file with that number of dimensions, or its number of values differs
            from its header.
    """
    file = file if file.exists() else file.with_name(f"{file.name}.gz")
    try:
        content = read_bytes(file)
    except Exception as error:  # OSError, and the exceptions of zlib and gzip
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}; fetch it again") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(f"{file}: is no IDX file of unsigned bytes in {dimensions} dimensions; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape) or not all(shape):
        sizes = " x ".join(map(str, shape))
        raise UserError(f"{file}: says {sizes} values and holds {len(content) - start}; fetch it again")
    return numpy.frombuffer(content, numpy.uint8, offset=start).reshape(shape), file


def read_cifar100(folder: Path) -> tuple[dict[str, tuple[numpy.ndarray, list[int]]], list[str]]:
    """Returns ({"train" | "test": (uint8 [n, 32, 32, 3], labels)}, class names) of CIFAR100's python version.

    Raises:
        UserError: a file cannot be read, has other content, or names code to run.
    """
    file = folder / "meta"
    names = read_pickle(file).get(b"fine_label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) and name for name in names):
        raise UserError(f'{file}: "fine_label_names" is {shown(names)}, not a list of names; fetch it again')
    splits = {split: _read_batch(folder / split, len(names)) for split in ("train", "test")}
    return splits, [name.decode("utf-8", "replace") for name in names]


def _read_batch(file: Path, classes: int) -> tuple[numpy.ndarray, list[int]]:
    content = read_pickle(file)
    data, labels = content.get(b"data"), content.get(b"fine_labels")
    values = 3 * SIDE * SIDE
    if not isinstance(data, _Array) or data.values.shape[1:] != (values,) or not len(data.values):
        raise UserError(f'{file}: "data" is no array of n x {values} unsigned bytes; fetch it again')
    if not isinstance(labels, list) or len(labels) != len(data.values):
        raise UserError(f'{file}: "fine_labels" is no list of {len(data.values)} labels, one a picture; fetch it again')
    for row, label in enumerate(labels, start=1):
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise UserError(f"{file} row {row}: label {shown(label)}; labels go from 0 to {classes - 1}")
    pictures = data.values.reshape(-1, 3, SIDE, SIDE)
    return numpy.ascontiguousarray(pictures.transpose(0, 2, 3, 1)), labels


class _Kind:
    """Replaces numpy.dtype: accepts unsigned bytes and rejects the file otherwise."""

    def __init__(self, name: Any, *options: Any) -> None:
        if name not in (b"u1", "u1", b"|u1", "|u1"):
            raise pickle.UnpicklingError(f"an array of {shown(name)}, where only unsigned bytes are read")

    def __setstate__(self, state: Any) -> None:
        """Ignores the state: single bytes have no byte order."""


class _Array:
    """Replaces numpy.ndarray of unsigned bytes, which are in `values`."""

    def __init__(self, *arguments: Any) -> None:
        self.values: numpy.ndarray = numpy.zeros(0, numpy.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that is not of plain bytes")
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array of shape {shown(shape)}")
        if math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"{len(content)} bytes in an array of shape {shown(shape)}")
        order: Literal["F", "C"] = "F" if columns_first else "C"
        self.values = numpy.frombuffer(content, numpy.uint8).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes in Python 2's protocol."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {shown(encoding)}")
    return text.encode("latin-1")


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C allocates any size that the file states
    KNOWN = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {shown(f'{module}.{name}')} to be run")
        return self.KNOWN[module, name]


def read_pickle(file: Path) -> dict[Any, Any]:
    """Returns the dict in a pickle made of arrays of bytes, lists, dicts and bytes; arrays become `_Array`.

    Raises:
        UserError: it cannot be read, is no such pickle, or names other code to run.
    """
    try:
        if file.stat().st_size > LARGEST_PICKLE:
            raise UserError(
                f"{file}: has more than {LARGEST_PICKLE} bytes, so it is none of CIFAR100's; fetch it again"
            )
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception, also MemoryError
        raise UserError(f"{file}: not read: {shown(str(error))[1:-1]}; fetch CIFAR100's python version again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds {shown(content)}, not a dict; fetch CIFAR100's python version again")
    return content
