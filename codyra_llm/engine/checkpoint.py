"""Topology-independent checkpoints: position, results and consolidated trainable state.

checkpoints/00000012/
    progress.json       position and results so far
    state.safetensors   A, B, gate and moving averages (`engine.state`); only in the middle of a task
    checksums.json      the run; SHA-256 of both files, and of the other files in the run folder that they need

Each checkpoint is written to a temporary folder, flushed and renamed; the last two are kept.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from pydantic import Field
from safetensors.torch import load, save_file

from codyra_llm.errors import UserError
from codyra_llm.files import plain_name, read_json, replace_folder, sha256, type_adapter
from codyra_llm.text import shown

KEPT = 2
SCHEMA_VERSION = 1  # of progress.json; files without a version are older and have the form of version 1

_Count = Annotated[int, Field(strict=True, ge=0)]
_Phase = Annotated[str, Field(pattern="^(evaluate|train|merge|save|done)$")]


class _Unfit(Exception):
    """A checkpoint cannot be used; the message names the problem in one line."""


@dataclass(frozen=True)
class Progress:
    """The position of a run and its results so far.

    Attributes:
        task: number of the task, from 1; 0: the base model.
        phase: the phase to begin or to resume.
        step: optimizer steps done in the phase; above 0 in the middle of a task's training.
        global_step: optimizer steps done in the run.
        ledger: content of the ledger, as JSON.
        results: content of the results, as JSON.
        kept: path (relative to the run folder) and SHA-256 of the file that the method keeps.
    """

    task: _Count
    phase: _Phase
    step: _Count
    global_step: _Count
    ledger: dict[str, Any]
    results: dict[str, Any]
    kept: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified; `tensors` is empty between phases."""

    progress: Progress
    tensors: dict[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of a run in a folder (on rank 0).

    Args:
        folder: their folder, inside the run folder.
        run: identifies the run; checkpoints of other runs are rejected.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._unfit: list[Path] = []  # seen by `latest`

    def write(self, progress: Progress, tensors: dict[str, torch.Tensor], rests_on: dict[str, str]) -> None:
        """Adds a checkpoint, then removes all but the last two.

        Args:
            progress: position and results.
            tensors: the state, as tensors that safetensors can store; may be empty.
            rests_on: SHA-256 of other files that the checkpoint needs, by path relative to the run folder.

        Raises:
            OSError: it cannot be written; earlier checkpoints are unchanged.
        """
        present = self._present()
        serial = int(present[-1].name) + 1 if present else 1
        with replace_folder(self.folder / f"{serial:08d}") as scratch:
            content = {"schema_version": SCHEMA_VERSION, **vars(progress)}
            (scratch / "progress.json").write_text(json.dumps(content), encoding="utf-8")
            if tensors:
                save_file(tensors, scratch / "state.safetensors")
            sums = {path.name: sha256(path) for path in scratch.iterdir()}
            (scratch / "checksums.json").write_text(
                json.dumps({"run": self.run, "sha256": sums, "rests_on": rests_on}), encoding="utf-8"
            )
        fit = [path for path in present if path not in self._unfit]
        for old in [*self._unfit, *fit[: len(fit) + 1 - KEPT]]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Returns the newest valid checkpoint of this run, and the problems of newer ones.

        Raises:
            UserError: there are checkpoints, but none can be used.
        """
        problems: list[str] = []
        for folder in reversed(self._present()):
            try:
                progress = self._read(folder)
            except _Unfit as problem:
                problems.append(str(problem))
                self._unfit.append(folder)
                continue
            state = folder / "state.safetensors"
            # read, not mapped: some systems cannot remove a mapped file
            return Checkpoint(progress, load(state.read_bytes()) if state.exists() else {}), problems
        if problems:
            raise UserError(f"no checkpoint can be used: {'; '.join(problems)}; `--resume never` starts over")
        return None, []

    def _present(self) -> list[Path]:
        """The checkpoint folders, oldest first; unfinished ones have another kind of name."""
        return sorted(path for path in self.folder.glob("*") if re.fullmatch(r"[0-9]{8,}", path.name))

    def _read(self, folder: Path) -> Progress:
        """Returns the position of a checkpoint after verifying all of its files; raises _Unfit."""
        damaged = _Unfit(f"{folder / 'checksums.json'} is damaged")
        try:
            sums = read_json(folder / "checksums.json")
            if sums["run"] != self.run:
                raise _Unfit(f"{folder} belongs to another run (its configuration or its data differ)")
            files = {folder / plain_name(name, "file"): expected for name, expected in sums["sha256"].items()}
            files |= {self.folder.parent / name: expected for name, expected in sums["rests_on"].items()}
            if folder / "progress.json" not in files:
                raise damaged
            for path, expected in files.items():
                if sha256(path) != expected:
                    raise _Unfit(f"{path} is damaged")
            return _read_progress(folder / "progress.json")
        except FileNotFoundError as error:
            raise _Unfit(f"{error.filename} is missing") from None
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
        except OSError as error:
            raise _Unfit(f"{folder} cannot be read: {error}") from None


def _read_progress(path: Path) -> Progress:
    content = read_json(path)
    version = content.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise _Unfit(f"{path} was written by another version of codyra_llm (schema_version {shown(version)})")
    try:
        return type_adapter(Progress).validate_python(content)
    except pydantic.ValidationError:
        raise _Unfit(f"{path} is damaged, or was written by another version of codyra_llm") from None
