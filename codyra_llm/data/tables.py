"""Reads the rows of a split, as prompt and answer, from files of several formats or a Hugging Face dataset."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codyra_llm.data.conversations import COLUMNS, conversation_rows
from codyra_llm.data.rows import KEYS, Row, check_rows, read_values, text_problem
from codyra_llm.errors import UserError
from codyra_llm.files import expand, read_bytes, read_text, sha256
from codyra_llm.text import shown

if TYPE_CHECKING:
    from codyra_llm.data.stream import DatasetSource, TaskSpec

Split = Literal["train", "test", "eval"]
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
# (columns of the prompt, of which the first is required; column of the answer) that need no mapping
LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("prompt",), "answer"),
    (("prompt",), "completion"),
    (("question",), "answer"),
    (("instruction", "input"), "output"),  # Alpaca
)
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_split(spec: "TaskSpec", folder: Path, split: Split, note: Callable[[str], None]) -> tuple[list[Row], str, str]:
    """Reads a task's split; returns (rows, with prompt and answer only; SHA-256 of their source; name of the source).

    Args:
        spec: the task's entry in the task file.
        folder: the folder of the task.
        split: train, test or eval.
        note: called with each remark on the rows, one line.

    Raises:
        UserError: no data exist, they cannot be read, or a row is invalid; the message names file and row.
    """
    if spec.dataset:
        where, values = _read_dataset(spec.dataset, split)
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
        rows = _rows(spec, list(map(_numbers_as_text, values)), where, note)
    else:
        paths = find_files(folder, split, spec.files.get(split))
        rows = [row for path in paths for row in _rows(spec, read_table(path), str(path), note)]
        digests = [sha256(path) for path in paths]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        where = str(paths[0]) if len(paths) == 1 else f"{folder}/{spec.files[split]}"
    if repeated := len(rows) - len({(row["prompt"], row["answer"]) for row in rows}):
        note(f"{where}: {repeated} of {len(rows)} rows repeat an earlier one; they are used as they are")
    return rows, digest, where


def _rows(spec: "TaskSpec", values: Any, where: str, note: Callable[[str], None]) -> list[Row]:
    if spec.is_text:
        return text_rows(values, where, (spec.columns or {}).get("text", "text"), note)
    return to_rows(values, where, spec.columns, note)


def text_rows(
    values: Any, where: str, column: str = "text", note: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Returns rows of raw text, which is their answer; the prompt is empty.

    Raises:
        UserError: a row has no text.
    """
    rows = check_rows(values, where, (column,))
    if others := _unused(values, {column}):
        note(f"{where}: of its rows, only {column} is used, not {others}")
    return [{"prompt": "", "answer": row[column]} for row in rows]


def find_files(folder: Path, split: str, pattern: str | None = None) -> list[Path]:
    """Returns the files of a split, sorted: those that match a pattern, or <split> with a suffix of `SUFFIXES` or .gz.

    Without a pattern and without a file, it is <split>.json, which does not exist.

    Raises:
        UserError: no file matches the pattern, or it is ambiguous which file is meant.
    """
    if pattern is not None:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not found:
            raise UserError(f"{folder}: no file is {pattern}, which the task file gives for {split}")
        return found
    names = [f"{split}{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz")]
    there = [folder / name for name in names if (folder / name).is_file()]
    if len(there) > 1 and [path.suffix for path in there] != [".json", ".jsonl"]:
        raise UserError(
            f"{folder}: has {' and '.join(path.name for path in there)}; keep one, or say in the task file which: "
            f"files: {{{split}: {there[0].name}}}"
        )
    return there[:1] or [folder / f"{split}.json"]


def read_table(path: Path) -> Any:
    """Returns the content of a file, a list of objects if it is valid; all values of CSV and TSV are text.

    Raises:
        UserError: it cannot be read; the message names the place if the format has one.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        return _read_parquet(path)
    if kind in (".csv", ".tsv"):
        return _read_csv(path, kind)
    return read_values(path)


def to_rows(
    values: Any, where: str, columns: Mapping[str, str] | None = None, note: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Returns rows of prompt and answer, from the named columns or, if none are named, by the layout of the first row.

    An answer may be a list of texts: the first is learned, and `references` has all; the best match counts.

    Raises:
        UserError: the layout is unknown, or a row is invalid.
    """
    first = values[0] if isinstance(values, list) and values else None
    keys: Mapping[str, Any] = first if isinstance(first, dict) else {}
    conversation = next((name for name in COLUMNS if isinstance(keys.get(name), list)), None)
    if conversation and not columns and not _known(keys):
        found = conversation_rows(values, where, conversation)
        note(f"{where}: the conversations are in {conversation}")
        if others := _unused(values, {conversation, "system"}):
            note(f"{where}: of its rows, only {conversation} is used, not {others}")
        return found
    prompts, answer = ((columns["prompt"],), columns["answer"]) if columns else _layout(keys, where)
    references: list[list[str]] = []
    if isinstance(values, list):
        references = [_references(row, answer) for row in values]
        pairs = zip(values, references, strict=True)
        values = [{**row, answer: several[0]} if several else row for row, several in pairs]
    checked = check_rows(values, where, (prompts[0], answer))
    rows: list[Row] = [{"prompt": row[prompts[0]], "answer": row[answer]} for row in checked]
    for row, several in zip(rows, references, strict=True):
        if len(several) > 1:
            row["references"] = several
    there = {key for row in values for key in row}
    inputs = [name for name in prompts[1:] if name in there]
    prompt = " and ".join([prompts[0], *inputs])
    if (*prompts, answer) != KEYS:
        note(f"{where}: the prompt is {prompt}, the answer is {answer}")
    if others := _unused(values, {*prompts, answer}):
        note(f"{where}: of its rows, only {prompt} and {answer} are used, not {others}")
    for name in inputs:
        _append_inputs(rows, values, name, where)
    return rows


def _known(keys: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    return next((layout for layout in LAYOUTS if layout[0][0] in keys and layout[1] in keys), None)


def _layout(keys: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    """Returns (columns of the prompt, column of the answer) of rows with these keys."""
    known = _known(keys)
    if not known and is_raw_text(keys):
        raise UserError(f"{where}: holds raw text; say so in the task file by scorer: bits_per_byte")
    return known or ((KEYS[0],), KEYS[1])


def is_raw_text(keys: Iterable[str]) -> bool:
    """True if rows with these keys look like raw text: a text, and nothing that could be an answer to it."""
    return "text" in keys and not {"prompt", "answer", "label", "labels", "messages", "output"} & set(keys)


def _append_inputs(rows: Sequence[Row], values: Sequence[Row], name: str, where: str) -> None:
    """Appends a column's text to the prompts, where it is not empty."""
    for number, (row, value) in enumerate(zip(rows, values, strict=True), 1):
        more = value.get(name)
        if more is not None and not isinstance(more, str):
            raise UserError(f'{where} row {number}: "{name}" is not text')
        row["prompt"] += f"\n\n{more}" if more and more.strip() else ""


def _references(row: Any, answer: str) -> list[str]:
    """Returns the texts of an answer that is a list of them; empty if it is not."""
    found = row.get(answer) if isinstance(row, dict) else None
    return list(found) if isinstance(found, list) and found and not any(map(text_problem, found)) else []


def _unused(values: Sequence[Row], used: set[str]) -> str:
    others = sorted({key for row in values for key in row} - used)
    return ", ".join(map(shown, others[:5]))


def _read_csv(path: Path, kind: str) -> list[Row]:
    """Reads a file with a header, with quotes, and semicolons instead of commas, as spreadsheets write it."""
    text = read_text(path)
    head = text.partition("\n")[0]
    delimiter = "\t" if kind == ".tsv" else ";" if ";" in head and "," not in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or "" in header:
            raise UserError(f"{path} line 1: a column has no name, or has that of another: {shown(header)}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path} line {reader.line_num}: {len(fields)} fields, the header has {len(header)}; put texts "
                    f"that contain {DELIMITERS[delimiter]} or line breaks in quotes"
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not valid {path.suffix[1:].upper()}: {error}") from None
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # takes half a second, and is seldom needed

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(read_bytes(path))).to_pylist()
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    return list(map(_numbers_as_text, rows))


def _read_dataset(source: "DatasetSource", split: Split) -> tuple[str, list[dict[str, Any]]]:
    """Loads a split of a dataset; returns (its name in errors, rows). Class labels are replaced by their names."""
    from datasets import ClassLabel, load_dataset  # takes a second, and is seldom needed

    path = str(expand(source.path)) if expand(source.path).exists() else source.path
    named = source.split.get(split, split)
    where = f"dataset {source.path} {named}"
    try:
        found = load_dataset(
            path, source.name, split=named, data_files=source.data_files, revision=source.revision, streaming=False
        )
    except Exception as error:  # several libraries raise exceptions about networks, files and formats
        raise UserError(f"{where}: cannot be loaded: {' '.join(str(error).split())[:500]}") from None
    labels = {name: feature for name, feature in found.features.items() if isinstance(feature, ClassLabel)}
    rows = [dict(row) for row in found]
    for row in rows:
        for name, feature in labels.items():
            if isinstance(row[name], int) and row[name] >= 0:
                row[name] = feature.int2str(row[name])
    return where, rows


def _numbers_as_text(row: Row) -> Row:
    """Returns a row with its numbers as text, as in CSV, so that a table means the same in each format."""
    is_number = {name: type(value) in (int, float) and math.isfinite(value) for name, value in row.items()}
    return {name: str(value) if is_number[name] else value for name, value in row.items()}


def check_sources(
    files: Mapping[str, str], columns: Mapping[str, str] | None, splits: Sequence[str], keys: Sequence[str]
) -> None:
    """Raises ValueError if a task file's settings for data files and columns are invalid."""
    if unknown := sorted(set(files) - set(splits)):
        raise ValueError(f"files: {shown(unknown[0])} is no split; there are {' and '.join(splits)}")
    if columns is not None and set(columns) != set(keys):
        raise ValueError(f"columns: names the columns of {' and '.join(keys)}, found {shown(sorted(columns))}")
    for pattern in files.values():
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"files: {shown(pattern)} leads out of the task's folder")
