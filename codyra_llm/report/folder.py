"""The run folder: complete and self-explaining. Only rank 0 has one; files are written beside and renamed."""

import csv
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from codyra_llm.adapter.merge import ModuleRank
from codyra_llm.config import RunConfig, load_config, to_yaml
from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import write_matrix_csv

CONTENTS = (
    "results.json",
    "matrix.csv",
    "matrix.png",
    "ranks.csv",
    "ranks.png",
    "predictions",
    "tensorboard",
    "train.log",
    "model",
)


class RunFolder:
    """Where a run writes: config.yaml and all of CONTENTS. Making the object only looks; `open` writes.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        try:
            self.path = Path(config.output_dir).expanduser()
        except RuntimeError as error:
            raise UserError(f"output_dir {config.output_dir}: {error}") from None
        self._check(config)

    def open(self) -> None:
        """Makes the folder, clears what an earlier start of the same run left, and writes config.yaml.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in CONTENTS:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            (self.path / "predictions").mkdir()
            self._write("config.yaml", to_yaml(self.config))
        except OSError as error:
            raise UserError(f"output_dir {self.path}: cannot be written: {error.strerror}") from None

    @property
    def model(self) -> Path:
        """Where the finished model goes."""
        return self.path / "model"

    def write_results(self, results: dict[str, Any]) -> None:
        """results.json: everything a table needs."""
        self._write("results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_matrix(self, tasks: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> None:
        """matrix.csv: row 0 the base model, row t after task t; an empty cell was not measured."""
        write_matrix_csv(self.path / "matrix.csv", list(tasks), matrix)

    def write_predictions(self, row_name: str, task: str, rows: Iterable[dict[str, Any]]) -> None:
        """predictions/<row>.<task>.jsonl: prompt, prediction, reference, nll and every score of each test row."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._write(f"predictions/{row_name}.{task}.jsonl", lines)

    def append_ranks(self, task: str, report: Sequence[ModuleRank], drift: dict[str, float]) -> None:
        """ranks.csv: for each task and module its rank, update norm, bound, and the norm of all updates so far."""
        path = self.path / "ranks.csv"
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["task", "module", "rank", "initial_rank", "update_norm", "bound", "cumulative_norm"])
            for module in report:
                numbers = (module.rank, module.initial_rank, module.norm, module.bound, drift[module.name])
                writer.writerow([task, module.name, *(f"{n:.6g}" for n in numbers)])

    def _check(self, config: RunConfig) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"output_dir {self.path}: is a file; name a folder")
        saved = self.path / "config.yaml"
        if saved.exists():
            try:
                same = load_config(saved) == config
            except UserError:
                same = False
            if not same:
                raise UserError(
                    f"output_dir {self.path}: holds a run with another configuration; choose another folder"
                )
        elif any(self.path.iterdir()):
            raise UserError(f"output_dir {self.path}: holds files that are not a run; choose an empty or new folder")

    def _write(self, name: str, text: str) -> None:
        target = self.path / name
        scratch = target.with_name(target.name + ".tmp")
        with scratch.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)


def start_log(path: Path | None) -> logging.Logger:
    """The run's log: to the console and, where a path is given, to a file; silent without one (other ranks)."""
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
    # what the published scorers stumble over is for the file; on the console it would bury the run
    console.addFilter(lambda record: not record.name.startswith("codyra_llm.evaluation.scorers"))
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(console)
    log.addHandler(file)
    return log
