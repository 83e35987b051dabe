"""Reads rows from JSON or JSON Lines and checks them: each has non-empty text in the required columns."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.files import read_json, read_jsonl, read_text
from codyra_llm.text import shown

Row = dict[str, Any]  # prompt and answer, text; a conversation has its messages as well (data/conversations.py)
KEYS: tuple[str, str] = ("prompt", "answer")
EXPECTED = 'every row needs {"prompt", "answer"}'
MOST_FAULTS = 10  # of a file that are reported together
MAPPED = "; where columns have other names, the task file says them: columns: {prompt: ..., answer: ...}"


def read_values(path: Path) -> Any:
    """Returns the content of a JSON or JSON Lines file, which may be gzip-compressed.

    Raises:
        UserError: the message names the file and the place: line and column of broken JSON, or the row that has a key
            twice.
    """
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return [value for _, value in read_jsonl(path, EXPECTED)]
    try:
        return read_json(path, EXPECTED)
    except UserError as error:
        if _holds_lines(path):
            return [value for _, value in read_jsonl(path, EXPECTED)]
        if "is given twice" not in str(error):
            raise
        key = str(error).split("(", 1)[1].rstrip(")")
        raise UserError(f"{path} row {_row_with_a_key_twice(path)}: {key}; {EXPECTED}") from None


def _holds_lines(path: Path) -> bool:
    """True if a file that is no JSON value has an object in its first line."""
    try:
        first = read_text(path).lstrip().partition("\n")[0]
        return isinstance(json.loads(first), dict)
    except (UserError, ValueError, RecursionError):
        return False


def _row_with_a_key_twice(path: Path) -> int:
    """Returns the number, from 1, of the first object with a repeated key; rows contain no objects."""
    whole: list[bool] = []
    json.loads(read_text(path), object_pairs_hook=lambda pairs: whole.append(len(dict(pairs)) == len(pairs)))
    return 1 + whole.index(False)


def check_rows(rows: Any, where: str, columns: Sequence[str] = KEYS) -> list[Row]:
    """Returns the rows with only these columns, each of which must contain text.

    Raises:
        UserError: `rows` is no list or empty, or some rows are invalid; the message begins with `where` and names the
            first invalid rows (from 1) and the number of others.
    """
    names = ", ".join(f'"{column}"' for column in columns)
    expected = f"every row needs {{{names}}}"
    check_list(rows, where, expected + _keys_of(rows, columns))
    bad = [(number, problem) for number, row in enumerate(rows, start=1) if (problem := row_problem(row, columns))]
    if bad:
        has = _keys_of(rows[bad[0][0] - 1], columns)
        raise UserError(faults(where, bad, expected + has) + (MAPPED if has else ""))
    return [{column: row[column] for column in columns} for row in rows]


def check_list(rows: Any, where: str, expected: str) -> None:
    """Raises UserError if there is no list of rows, or an empty one."""
    if not isinstance(rows, list):
        raise UserError(f"{where}: holds {kind_of(rows)}, not a list of rows; {expected}")
    if not rows:
        raise UserError(f"{where}: no rows; the list is empty, and {expected}")


def faults(where: str, bad: Sequence[tuple[int, str]], expected: str) -> str:
    """Returns a message about invalid rows (number, problem): the first ones, and the number of others."""
    number, problem = bad[0]
    others = "".join(f"; row {other}: {problem}" for other, problem in bad[1:MOST_FAULTS])
    rest = f"; and {len(bad) - MOST_FAULTS} more" if len(bad) > MOST_FAULTS else ""
    return f"{where} row {number}: {problem}; {expected}{others}{rest}"


def _keys_of(row: Any, columns: Sequence[str]) -> str:
    """Returns a remark on the keys of an object that lacks required ones; else empty."""
    if not isinstance(row, dict) or set(columns) <= set(row):
        return ""
    return f"; this one has {', '.join(map(shown, list(row)[:5])) or 'nothing'}"


def row_problem(row: Any, keys: Sequence[str] = ("prompt", "answer")) -> str | None:
    """Returns what is wrong with a row that must have text under each of these keys; None if nothing is."""
    if not isinstance(row, dict):
        return f"is {kind_of(row)}, not an object"
    for key in keys:
        if key not in row:
            return f'no "{key}"'
        if problem := text_problem(row[key]):
            return f'"{key}" {problem}'
    return None


def text_problem(text: Any) -> str | None:
    """Returns why a value is not a text to learn from; None if it is one."""
    if not isinstance(text, str):
        return f"is {kind_of(text)}, not text"
    if not text.strip():
        return "is empty"
    # JSON can contain half a surrogate pair, which neither a tokenizer nor a UTF-8 file can encode
    if re.search("[\ud800-\udfff]", text):
        return "holds a broken character (a lone surrogate)"
    return None


def kind_of(value: Any) -> str:
    """Returns the name of a JSON value's kind, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {"dict": "an object", "list": "a list", "str": "text"}.get(type(value).__name__, "a number")
