"""Prompts for comparing models: the user's files (JSON list or JSONL), and the criteria that answers are judged by."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from codyra_llm.data.rows import row_problem
from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.checks import Checks
from codyra_llm.files import expand, read_json, read_jsonl, read_text, shipped, type_adapter
from codyra_llm.text import shown

CRITERIA = shipped("tasks/judge")
EXPECTED = 'every row needs {"prompt"} and may have "id", "category", "checks"'
SLOTS = re.compile(r"\{(prompt|answer_a|answer_b)\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt; `where` is its place (file and line) in error messages."""

    text: str
    id: str
    category: str | None
    checks: Checks
    where: str


@dataclass(frozen=True)
class PromptFile:
    """The prompts of one file, and the judge's template (with SLOTS) for their answers."""

    name: str
    path: Path
    prompts: tuple[Prompt, ...]
    criterion: str
    template: str


def read_prompt_files(paths: Sequence[str], criteria: Sequence[str]) -> list[PromptFile]:
    """Reads the files, each with its criterion: one for each file, or one for all.

    Raises:
        UserError: a file is missing or malformed, a criterion is unknown, or their numbers do not match.
    """
    if not paths:
        raise UserError("prompts: no file; name at least one")
    if len(criteria) not in (1, len(paths)):
        raise UserError(f"criteria: {len(criteria)} for {len(paths)} files of prompts; give one for each, or one")
    names = [expand(path).stem for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f'prompts: two files are called "{twice}"; their results go by that name, so rename one')
    templates = [_read_template(criterion) for criterion in criteria] * (len(paths) // len(criteria))
    of_files = list(criteria) * (len(paths) // len(criteria))
    return [
        PromptFile(name, expand(path), tuple(_read_prompts(expand(path))), Path(criterion).stem, template)
        for name, path, criterion, template in zip(names, paths, of_files, templates, strict=True)
    ]


def _read_prompts(path: Path) -> list[Prompt]:
    if path.suffix == ".jsonl":
        rows, unit = read_jsonl(path, EXPECTED), "line"
    else:
        content = read_json(path, EXPECTED)
        if not isinstance(content, list):
            raise UserError(f"{path}: holds no list of rows; {EXPECTED}")
        rows, unit = list(enumerate(content, start=1)), "row"
    if not rows:
        raise UserError(f"{path}: no rows; {EXPECTED}")
    prompts: dict[str, Prompt] = {}
    for number, row in rows:
        prompt = _read_prompt(row, number, f"{path} {unit} {number}")
        if prompt.id in prompts:
            raise UserError(f'{prompt.where}: the id "{prompt.id}" is listed twice')
        prompts[prompt.id] = prompt
    return list(prompts.values())


def _read_prompt(row: Any, number: int, where: str) -> Prompt:
    category = row.get("category") if isinstance(row, dict) else None
    keys = ("prompt",) if category is None else ("prompt", "category")
    if problem := row_problem(row, keys):
        raise UserError(f"{where}: {problem}; {EXPECTED}")
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UserError(f'{where}: "id" is {shown(name)}, neither text nor a whole number')
    try:
        checks = type_adapter(Checks).validate_python(row.get("checks") or {})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("checks", *first["loc"])))
        known = ", ".join(Checks.__dataclass_fields__)
        raise UserError(
            f"{where}: {place}: {first['msg']}, found {shown(first['input'])}; checks are {known}"
        ) from None
    return Prompt(row["prompt"], str(name), category, checks, where)


def _read_template(criterion: str) -> str:
    shipped = CRITERIA / f"{criterion}.txt"
    path = shipped if shipped.is_file() and criterion != "refusals" else expand(criterion)
    if path.suffix != ".txt":
        raise UserError(f'criteria: unknown criterion "{criterion}"; helpfulness, harmlessness, or a .txt template')
    text = read_text(path, "a criterion is helpfulness, harmlessness, or a template like tasks/judge/helpfulness.txt")
    if missing := {"prompt", "answer_a", "answer_b"} - set(SLOTS.findall(text)):
        raise UserError(f"{path}: the template has no {{{min(missing)}}}; see tasks/judge/helpfulness.txt")
    return text.strip()
