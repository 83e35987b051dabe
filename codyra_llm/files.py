"""Reading the files that a user names, and writing so that what is half-written is never taken for the whole.

Whatever is wrong with a text that is read is a UserError that names it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from codyra_llm.errors import UserError


def expand(path: str | Path) -> Path:
    """A path with its leading `~` or `~name` replaced.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such home folder; write the path without ~") from None


def read_text(path: Path, hint: str = "") -> str:
    """The UTF-8 text of a file; `hint` is what an error says would be right.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        # utf-8-sig: editors on Windows put a byte-order mark in front, which json refuses.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        problem = error.strerror or str(error)
    except ValueError as error:  # a null character in the path
        problem = str(error)
    raise UserError(_with_hint(f"{path}: {problem}", hint))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks: it may be a model."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, hint: str = "") -> Any:
    """The value that a JSON file holds.

    Raises:
        UserError: the file cannot be read, or is not JSON (with line and column).
    """
    text = read_text(path, hint)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} column {error.colno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(_with_hint(f"{path}: nested too deeply", hint)) from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_yaml(path: Path, hint: str = "") -> Any:
    """The value that a YAML file holds; a key may stand only once.

    Raises:
        UserError: the file cannot be read, is not YAML, or repeats a key.
    """
    text = read_text(path, hint)
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise UserError(_with_hint(f"{path}: nested too deeply", hint)) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def cache_folder() -> Path:
    """Where converted models and tokenised data are kept: $CODYRA_CACHE, or ~/.cache/codyra_llm."""
    return expand(os.environ.get("CODYRA_CACHE") or "~/.cache/codyra_llm")


def read_jsonl(path: Path, hint: str = "") -> list[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSONL file that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    rows = []
    # Not splitlines(): U+2028 and its like may stand unescaped inside a JSON string.
    for number, line in enumerate(read_text(path, hint).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not valid JSON: {error}") from None
    return rows


def append_journal(path: Path, value: Any) -> None:
    """Adds a value to a journal, one JSON value a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value) + "\n")


def read_journal(path: Path) -> list[Any]:
    """What was added to a journal; a last line that was cut off when the process was killed is taken away."""
    values: list[Any] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = 0  # bytes
    for line in lines:
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            values.append(json.loads(line))
        except ValueError:
            os.truncate(path, whole)  # what follows would be written behind it
            break
        whole += len(line)
    return values


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file beside, flushes it to the disk and renames it."""
    with replace_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path beside to write a file to; at the end it is flushed to the disk and renamed to `path`."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        yield scratch
        _sync(scratch)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    scratch.replace(path)
    _sync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write files into; at the end they are flushed to the disk and it is renamed to `folder`.

    What `folder` held before is gone then; where writing fails, it is untouched.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in [*scratch.iterdir(), scratch]:
            _sync(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)  # on a full disk, it would stand in the way
        raise
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f'the key "{key.value}" stands there twice',
                                                            problem_mark=key.start_mark)  # fmt: skip
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _with_hint(problem: str, hint: str) -> str:
    return f"{problem}; {hint}" if hint else problem
