"""Content hash of a model's weights: the same name may refer to a different model later, or on another machine."""

import contextlib
import hashlib
import json
from pathlib import Path

from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from codyra_llm.errors import UserError, reason
from codyra_llm.files import cache_folder, sha256, write_text
from codyra_llm.models.folder import weight_files
from codyra_llm.models.shards import ShardReader


def model_hash(path: str) -> str:
    """Returns the hexadecimal SHA-256 of a model's weights: of each tensor's name, dtype, shape and values.

    It does not depend on how the tensors are divided over safetensors files. Pickled weights are hashed by file,
    without the files' names. Hashing reads every byte, so the hashes of a file are cached, as long as its path, size
    and modification time do not change.

    Args:
        path: a folder or hub id.

    Raises:
        UserError: the model has no weights, or they cannot be read.
    """
    try:
        contents = {name: digest for file in _files(path) for name, digest in _remembered(file).items()}
    except (OSError, ValueError) as error:
        raise UserError(f"model.name_or_path {path}: cannot be loaded: {reason(error)}") from None
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _files(path: str) -> list[Path]:
    try:
        return weight_files(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            return weight_files(path, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
        raise error


def _remembered(file: Path) -> dict[str, str]:
    """Returns `_contents` of a file, from the cache if the file has not changed."""
    file = file.resolve()
    status = file.stat()
    key = hashlib.sha256(f"{file} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    kept = cache_folder() / "hashes" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, str] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    found = _contents(file)
    with contextlib.suppress(OSError):  # another process may write the same at once; a cache may be read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(found))
    return found


def _contents(file: Path) -> dict[str, str]:
    """Returns the hash of each tensor of a file; if it is no readable safetensors file, that of the whole file."""
    try:
        reader = ShardReader([file])
    except ValueError:
        digest = sha256(file)
        return {digest: digest}  # not by its name: a file has a different name in the hub's cache
    return {name: reader.digest(name) for name in reader.shapes}
