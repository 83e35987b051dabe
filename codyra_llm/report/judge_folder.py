"""The folder of a comparison of two models: judge.yaml, answers.jsonl, verdicts.jsonl, results.json, judge.log."""

import json
from collections.abc import Iterable
from typing import Any

import yaml

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import JudgeConfig, decisive
from codyra_llm.files import append_json_line, expand, read_json_lines, read_yaml, write_text
from codyra_llm.report.folder import OutputFolder

OF_THE_JUDGE = ("criteria", "judge", "judge_model")


class JudgeFolder(OutputFolder):
    """The folder of a comparison, on rank 0 only. The constructor only checks and locks; `open` writes.

    Raises:
        UserError: the folder contains another comparison or other files, or is locked by another process.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(expand(config.output_dir))
        self.config = config
        where, saved = f"output_dir {self.path}", self.path / "judge.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{where}: is a file; name a folder")
        if saved.exists():
            found, settings = read_yaml(saved), self._settings()
            if isinstance(found, dict) and found.get("judge") == "none":  # stored answers can be judged later
                found |= {name: settings[name] for name in OF_THE_JUDGE}
            if found != settings:
                raise UserError(f"{where}: holds another comparison; choose another folder")
        elif self.path.exists() and not self.is_unused():
            raise UserError(f"{where}: holds files that are not a comparison; choose an empty or new folder")
        if self.path.is_dir():
            self.lock()

    def open(self) -> None:
        """Creates the folder and writes judge.yaml; other existing files are kept.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.lock()
            write_text(self.path / "judge.yaml", yaml.safe_dump(self._settings(), sort_keys=False, allow_unicode=True))
            (self.path / "predictions").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.path}: cannot be written: {error.strerror or error}") from None

    def write_answers(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes answers.jsonl: each prompt with the answers of both models."""
        write_text(self.path / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_verdicts(self) -> list[dict[str, Any]]:
        """Returns the lines of verdicts.jsonl, in their order."""
        return read_json_lines(self.path / "verdicts.jsonl")

    def append_verdicts(self, lines: Iterable[dict[str, Any]]) -> None:
        """Appends to verdicts.jsonl: each unchanged reply of the judge, what it was asked about, and its verdict."""
        for line in lines:
            append_json_line(self.path / "verdicts.jsonl", line)

    def _settings(self) -> dict[str, Any]:
        """Returns the decisive settings with the types that YAML has after reading."""
        return json.loads(json.dumps(decisive(self.config)))
