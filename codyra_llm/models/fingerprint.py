"""Content hash of a model's weights: a name may mean another model tomorrow, or on another machine."""

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
    """Hexadecimal SHA-256 of the weights of a folder or hub id: of each tensor's name, dtype, shape and values.

    However they are divided over safetensors files, it is the same. Pickled weights are hashed by file, whatever those
    are called. What was found of a file is kept in the cache folder as long as its path, size and time stay: hashing
    reads every byte.

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
    """`_contents`, from the cache where the file is as it was."""
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
    """The hash of each tensor of a file; of a file that is not known here, that of the whole."""
    try:
        reader = ShardReader([file])
    except ValueError:
        digest = sha256(file)
        return {digest: digest}  # not by its name: in the hub's cache, a file is called otherwise
    return {name: reader.digest(name) for name in reader.shapes}
