"""The run folder. Only rank 0 has one; files are written under a temporary name and renamed."""

import csv
import dataclasses
import io
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from codyra_llm.adapter.merging import ModuleRank
from codyra_llm.config import RunConfig, differences, load_config, to_yaml
from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import write_matrix_csv
from codyra_llm.files import append_json_line, expand, read_json, read_json_lines, remove, write_text
from codyra_llm.generation.generate import Answered
from codyra_llm.locks import NAME as LOCK
from codyra_llm.locks import FolderLock, claim
from codyra_llm.report.artifacts import ARTIFACTS
from codyra_llm.results.schema import Provenance, RunResults, read_results, to_text


class OutputFolder:
    """The folder that a command writes to: its results, and the answers so far. The constructor writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    def lock(self) -> None:
        """Creates the folder and locks it for this process, until `unlock`; does nothing if it is already locked.

        Raises:
            UserError: another process has locked it.
            OSError: it cannot be created or written.
        """
        if not self._lock:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = claim(self.path)

    def unlock(self) -> None:
        """Releases the lock of the folder."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def is_unused(self) -> bool:
        """True if the folder contains only what a start may leave that was killed before it wrote anything."""
        for item in self.path.iterdir():
            if item.name == "predictions" and item.is_dir() and not any(item.iterdir()):
                continue
            if item.name not in (LOCK, "stop", "stopped") and item.suffix != ".tmp":
                return False
        return True

    @property
    def trigger(self) -> Path:
        """The file that makes the run stop."""
        return self.path / "stop"

    def clear_stop_files(self) -> None:
        """Removes the files `stop` and `stopped` of an earlier start."""
        for path in (self.trigger, self.path / "stopped"):
            if path.exists():
                path.unlink()

    def write_stopped(self, where: str) -> None:
        """Writes the file `stopped`, which shows that the run stopped on request and can be resumed; removes `stop`."""
        write_text(self.path / "stopped", where + "\n")
        self.trigger.unlink(missing_ok=True)

    def write_results(self, results: Provenance) -> None:
        """Writes results.json, which contains all data for tables."""
        write_text(self.path / "results.json", to_text(results))

    def read_answers(self, row_name: str) -> dict[str, Answered]:
        """Returns the answers of a row from before the command was interrupted, by the question's key."""
        return {
            question: Answered(*answer)
            for content in read_json_lines(self._partial_answers(row_name))
            for question, answer in content.items()
        }

    def append_answers(self, row_name: str, answered: dict[str, Answered]) -> None:
        """Stores answers, by the question's key."""
        content = {question: dataclasses.astuple(answer) for question, answer in answered.items()}
        append_json_line(self._partial_answers(row_name), content)

    def _partial_answers(self, row_name: str) -> Path:
        return self.path / "predictions" / f"{row_name}.partial"


class RunFolder(OutputFolder):
    """The folder of a run, with config.yaml and all of ARTIFACTS. The constructor only checks and locks; `open` writes.

    Raises:
        UserError: the folder contains another run or other files, or is locked by another process.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(expand(config.output_dir))
        self.config = config
        self._check()
        if self.path.is_dir():
            self.lock()

    def open(self, resumed: bool = False) -> None:
        """Creates the folder and writes config.yaml; clears the files of an earlier start unless `resumed`.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.lock()
            self._check()  # another process may have written to it before the lock
            write_text(self.path / "config.yaml", to_yaml(self.config))  # first: it marks the folder as that of a run
            for artifact in () if resumed else ARTIFACTS:
                remove(self.path / artifact.name)
            (self.path / "predictions").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.path}: cannot be written: {error.strerror or error}") from None

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    @property
    def ledger(self) -> Path:
        """The folder of the updates of finished tasks."""
        return self.path / "ledger"

    @property
    def kept(self) -> Path:
        """The folder of the state that a method keeps from finished tasks."""
        return self.path / "kept"

    def finished(self) -> RunResults | None:
        """Returns the results of a finished run; None if they or the model are missing or damaged."""
        try:
            results = read_results(self.path)
            config = read_json(self.model / "config.json")
        except UserError:
            return None
        whole = isinstance(config, dict) and any(self.model.glob("*.safetensors"))
        return results if whole and results.finished else None

    def write_matrix(self, tasks: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> None:
        """Writes matrix.csv: row 0 the base model, row t after task t; an empty cell was not measured."""
        write_matrix_csv(self.path / "matrix.csv", list(tasks), matrix)

    def write_predictions(self, row_name: str, task: str, rows: Iterable[dict[str, Any]]) -> None:
        """Writes predictions/<row>.<task>.jsonl: prompt, prediction, reference, nll and scores of each test row."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(self.path / "predictions" / f"{row_name}.{task}.jsonl", lines)

    def drop_answers(self) -> None:
        """Removes the answers that `append_answers` stored, once all predictions of the row are written."""
        for partial in (self.path / "predictions").glob("*.partial"):
            partial.unlink()

    def append_ranks(self, task: str, report: Sequence[ModuleRank], drift: dict[str, float]) -> None:
        """Adds a task to ranks.csv: for each module its rank, update norm, bound, and norm of all updates so far."""
        path = self.path / "ranks.csv"
        header = ["task", "module", "rank", "initial_rank", "update_norm", "bound", "cumulative_norm"]
        rows: list[list[Any]] = [header]
        if path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                _, *known = csv.reader(stream)
            rows += [row for row in known if row[0] != task]  # a task may be learned again after a resume
        for module in report:
            numbers = (module.rank, module.initial_rank, module.norm, module.bound, drift.get(module.name, 0.0))
            rows.append([task, module.name, *(f"{n:.6g}" for n in numbers)])
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        write_text(path, text.getvalue())

    def _check(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"output_dir {self.path}: is a file; name a folder")
        saved = self.path / "config.yaml"
        if saved.exists():
            try:
                differing = differences(load_config(saved), self.config)
            except UserError:
                differing = ["config.yaml cannot be read"]
            if differing:
                raise UserError(
                    f"output_dir {self.path}: holds a run with another configuration ({'; '.join(differing[:10])}); "
                    "give its settings to resume it, or another output_dir"
                )
        elif not self.is_unused():
            raise UserError(f"output_dir {self.path}: holds files that are not a run; choose an empty or new folder")


def scores_folder(config: RunConfig) -> RunFolder:
    """Returns the folder for the scores of a model that is not trained.

    Raises:
        UserError: it contains a training run, whose results would be lost; or as `RunFolder`.
    """
    path = expand(config.output_dir)
    if (path / "checkpoints").exists():
        raise UserError(f"output_dir {path}: holds a training run; name another folder for the scores")
    return RunFolder(config)


def start_log(path: Path | None) -> logging.Logger:
    """Returns the log of a run, to the console and to the file `path`; silent if path is None (other ranks)."""
    log = logging.getLogger("codyra_llm")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    if path is None:
        log.addHandler(logging.NullHandler())
        return log
    log.setLevel(logging.INFO)
    console, file = logging.StreamHandler(), logging.FileHandler(path, encoding="utf-8")
    # warnings of the published scorers go to the file only: there are too many of them for the console
    console.addFilter(lambda record: not record.name.startswith("codyra_llm.evaluation.scorers"))
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(console)
    log.addHandler(file)
    return log
