"""Writes selfcheck.json and selfcheck.md, and inserts their tables into a page of the documentation."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from codyra_llm.files import put_between_marks, read_json, write_text
from codyra_llm.selfcheck.outcome import Outcome, Row

SCHEMA_VERSION = 1


def write(folder: Path, device: str, seconds: float, command: list[str], outcomes: Iterable[Outcome]) -> None:
    """Writes selfcheck.json and selfcheck.md."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "device": device,
        "seconds": round(seconds, 1),
        "parts": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    write_text(folder / "selfcheck.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "selfcheck.md", page(content))


def page(content: dict[str, Any]) -> str:
    """Returns the content of selfcheck.json as Markdown: a line for each part, then the rows of each."""
    parts = content["parts"]
    lines = [
        {
            "part": part["part"],
            "kind": part["kind"],
            "status": part["status"] + (f": {part['reason']}" if part["reason"] else ""),
            "seconds": f"{part['seconds']:.1f}",
        }
        for part in parts
    ]
    sections = [f"`{' '.join(content['command'])}`, in {content['seconds']:.0f} s:", table(lines)]
    for part in parts:
        tables = [table(list(rows)) for _, rows in groupby(part["rows"], key=lambda row: list(row))]
        sections += [f"**{part['part']}**", *tables] if tables else []
    return "\n\n".join(sections) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Returns rows with the same keys as a Markdown table."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + [f"| {' | '.join(map(_cell, row.values()))} |" for row in rows])


def put_into(page_path: Path, folder: Path) -> None:
    """Replaces the text between the marks of a page by the tables of a folder's selfcheck.json.

    Raises:
        UserError: there is no such page or result, or the page has no marks.
    """
    content = read_json(folder / "selfcheck.json", "codyra selfcheck --output_dir FOLDER writes it")
    put_between_marks(page_path, "selfcheck", page(content))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
