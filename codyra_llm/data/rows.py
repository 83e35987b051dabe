"""Reading one data file: a JSON list of {"prompt", "answer"}, both non-empty text."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.files import read_json

EXPECTED = 'every row needs {"prompt", "answer"}'


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of one file, prompt and answer only.

    Raises UserError naming the file and the place: line and column of broken JSON, or the first bad row (from 1).
    """
    return check_rows(read_json(path, EXPECTED), str(path))


def check_rows(rows: Any, where: str) -> list[dict[str, str]]:
    """The rows, prompt and answer only.

    Raises UserError, beginning with `where`, if they are no list, none, or naming the first bad row (from 1).
    """
    if not isinstance(rows, list):
        raise UserError(f"{where}: holds {_kind(rows)}, not a list of rows; {EXPECTED}")
    if not rows:
        raise UserError(f"{where}: no rows; the list is empty, and {EXPECTED}")
    for number, row in enumerate(rows, start=1):
        if problem := row_problem(row):
            raise UserError(f"{where} row {number}: {problem}; {EXPECTED}")
    return [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]


def row_problem(row: Any, keys: Sequence[str] = ("prompt", "answer")) -> str | None:
    """What is wrong with a row that must have text under each of these keys; None where nothing is."""
    if not isinstance(row, dict):
        return f"is {_kind(row)}, not an object"
    for key in keys:
        if key not in row:
            return f'no "{key}"'
        text = row[key]
        if not isinstance(text, str):
            return f'"{key}" is {_kind(text)}, not text'
        if not text.strip():
            return f'"{key}" is empty'
        # JSON can spell half a surrogate pair, which neither a tokenizer nor a UTF-8 file can take.
        if re.search("[\ud800-\udfff]", text):
            return f'"{key}" holds a broken character (a lone surrogate)'
    return None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {"dict": "an object", "list": "a list", "str": "text"}.get(type(value).__name__, "a number")
