"""Checked reads of the files that a user names, and atomic writes (temporary file, fsync, rename).

Any problem with a text file that is read is a UserError that names the file.
"""

import functools
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from codyra_llm.errors import UserError
from codyra_llm.text import shown

Kind = TypeVar("Kind")
LARGEST_UNPACKED = 2**30  # bytes; or a hundred times the packed size, if that is larger
LONGEST_NAME = 255  # bytes of a file's name, on nearly all file systems
_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by setting it
MODE = 0o666 & ~_UMASK  # of files that are written, whatever mode a library chose
_TYPE_ADAPTERS: dict[type, pydantic.TypeAdapter[Any]] = {}


def expand(path: str | Path) -> Path:
    """Returns a path with its leading `~` or `~name` replaced.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such home folder; write the path without ~") from None


def shipped(path: str) -> Path:
    """Returns the path of a file that comes with the project ("tasks/trace"), in a clone or an installed wheel."""
    return _shipped_root() / path


@functools.cache
def _shipped_root() -> Path:
    clone = Path(__file__).parents[1]
    if (clone / "tasks" / "trace").is_dir():
        return clone
    files = importlib.metadata.files("codyra_llm") or ()
    known = next((file for file in files if file.as_posix().endswith("share/codyra_llm/tasks/trace/trace.yaml")), None)
    return Path(known.locate()).parents[2].resolve() if known else clone


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed if its suffix is .gz.

    Raises:
        OSError: it cannot be read, is not gzip although named .gz, or is too large when decompressed.
        EOFError: the compressed content is truncated.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    largest = max(LARGEST_UNPACKED, 100 * path.stat().st_size)
    with gzip.open(path) as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(f"unpacks to more than {largest} bytes; unpack it yourself if that is meant")
    return content


def read_text(path: Path, hint: str = "") -> str:
    """Returns the UTF-8 text of a file, which may be gzip-compressed; `hint` ends the error message.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = read_bytes(path)
        # utf-8-sig: editors on Windows write a byte-order mark first, which json rejects
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
    except (OSError, EOFError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    except ValueError as error:  # a null character in the path
        problem = str(error)
    raise UserError(_with_hint(f"{path}: {problem}", hint))


def plain_name(name: Any, where: str) -> str:
    """Returns a name that was read from a file, if it is valid as one component of a path.

    Raises:
        UserError: it is not text, leads elsewhere, cannot be printed, or is longer than file systems allow; `where`
            begins the message: "<file>: the task name".
    """
    if not isinstance(name, str):
        raise UserError(f"{where} {shown(name)} is not text; put it in quotes")
    if name in ("", ".", "..") or not name.isprintable() or any(mark in name for mark in "/\\"):
        raise UserError(
            f'{where} "{name[:100]}" cannot name a folder; leave out slashes, mere dots and what no font shows'
        )
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f'{where} "{name[:100]}" is longer than {LONGEST_NAME} bytes, which file systems do not take')
    return name


def ordinary_file(folder: Path, name: str) -> Path:
    """Returns the path of a file in a folder, neither of which may be a link.

    Raises:
        UserError: the file is a link or no regular file, or does not exist, or the folder is a link.
    """
    path = folder / name
    for each in (folder, path):
        if each.is_symlink():
            raise UserError(f"{each} is a link; only what lies in the folder itself is read, so put a copy there")
    if not path.is_file():
        problem = "is not a file" if path.exists() else "cannot be read: No such file or directory"
        raise UserError(f"{path} {problem}")
    return path


def full_disk(error: Exception) -> bool:
    """True if an error message of a library (some are written in Rust) reports that the disk is full."""
    return "os error 28" in str(error) or "No space left" in str(error)


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, which is read in blocks, as it may be a model."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, hint: str = "") -> Any:
    """Returns the value in a JSON file.

    Raises:
        UserError: the file cannot be read, is not JSON (with line and column), or has a key twice.
    """
    text = read_text(path, hint)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} column {error.colno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(_with_hint(f"{path}: nested too deeply", hint)) from None
    except ValueError as error:  # a number of thousands of digits, or a repeated key
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_yaml(path: Path, hint: str = "") -> Any:
    """Returns the value in a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, or has a key twice.
    """
    text = read_text(path, hint)
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise UserError(_with_hint(f"{path}: nested too deeply", hint)) from None
    except Exception as error:  # YAMLError, or any exception from a tag's value, such as an invalid date
        problem = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError | ValueError) else "a value is unfit"
        raise UserError(f"{path}: not valid YAML: {problem}") from None


def cache_folder() -> Path:
    """Returns the folder of converted models and tokenized data: $CODYRA_CACHE, or ~/.cache/codyra_llm.

    Raises:
        UserError: the variable is not set, and the user has no home folder.
    """
    if given := os.environ.get("CODYRA_CACHE"):
        return expand(given)
    try:
        return Path.home() / ".cache" / "codyra_llm"
    except RuntimeError:
        raise UserError("this user has no home folder to keep caches in; set CODYRA_CACHE to a folder") from None


def read_jsonl(path: Path, hint: str = "") -> list[tuple[int, Any]]:
    """Returns (line number from 1, value) of every line of a JSONL file that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    rows = []
    # not splitlines(): a JSON string may contain U+2028 and similar characters unescaped
    for number, line in enumerate(read_text(path, hint).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line, object_pairs_hook=_unique_keys)))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not valid JSON: {error}") from None
    return rows


def type_adapter(kind: type[Kind]) -> pydantic.TypeAdapter[Kind]:
    """Returns a validator of a dataclass, created once: with many fields, it takes a tenth of a second."""
    if kind not in _TYPE_ADAPTERS:
        _TYPE_ADAPTERS[kind] = pydantic.TypeAdapter(kind)
    return _TYPE_ADAPTERS[kind]


def validated(kind: type[Kind], content: Any, where: str, problem: str) -> Kind:
    """Returns a dataclass from its content in JSON; unknown keys are ignored.

    Args:
        kind: the dataclass.
        content: the content.
        where: name of the content in errors.
        problem: end of the error message if the content is invalid.

    Raises:
        UserError: a value is missing or has the wrong type; the message names it.
    """
    try:
        return type_adapter(kind).validate_python(content)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; {problem}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {problem}") from None


def append_json_line(path: Path, value: Any) -> None:
    """Appends a value to a file of partial results, which has one JSON value per line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """Returns the values of a file of partial results; removes a last line that was truncated by a kill."""
    values: list[Any] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = 0  # bytes
    for line in lines:
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            values.append(json.loads(line))
        except ValueError:
            os.truncate(path, whole)  # later values would be appended to the incomplete line
            break
        whole += len(line)
    return values


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file to a temporary path, flushes it to the disk and renames it."""
    with replace_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def put_between_marks(page: Path, part: str, text: str) -> None:
    """Replaces the text between the marks of a part in a Markdown page.

    Raises:
        UserError: there is no such page, or it has no marks of that part.
    """
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    before, found, rest = read_text(page).partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise UserError(f"{page}: has no {begin} with {end} behind it, between which the tables are put")
    write_text(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A context with a temporary path to write to; at its end the file is flushed to the disk and renamed to `path`."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        yield scratch
        scratch.chmod(MODE)
        _sync(scratch)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    scratch.replace(path)
    _sync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A context with a temporary folder to write to; at its end it is flushed to the disk and renamed to `folder`.

    The previous content of `folder` is removed then; if writing fails, it is unchanged.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    remove(scratch)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                path.chmod(MODE)  # safetensors gives read permission to the owner alone
            _sync(path)
        _sync(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)  # on a full disk, it would take up space
        raise
    remove(folder)
    scratch.rename(folder)
    _sync(folder.parent)


def remove(path: Path) -> None:
    """Removes a folder, a file, or a link (not its target); does nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice}" is given twice')
    return found


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f'the key "{key.value}" is listed twice',
                                                            problem_mark=key.start_mark)  # fmt: skip
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _with_hint(problem: str, hint: str) -> str:
    return f"{problem}; {hint}" if hint else problem


def check_once(folders: Sequence[Path]) -> None:
    """Raises UserError if a folder is given twice, since its content would count twice."""
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{folder}: is given twice; give each folder once")
        seen.add(folder.resolve())
