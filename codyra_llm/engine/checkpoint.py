"""Topology-independent checkpoints: position, results and consolidated trainable state.

checkpoints/00000012/
    progress.json       position and results so far
    state.safetensors   A, B, gate and moving averages (`engine.state`); only in the middle of a task
    checksums.json      the run that they belong to; SHA-256 of both, and of what else in the run folder they rest on

Each is written beside, flushed and renamed; the last two are kept.
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
SCHEMA_VERSION = 1  # of progress.json; one without was written before there were versions, and is like the first

_Count = Annotated[int, Field(strict=True, ge=0)]
_Phase = Annotated[str, Field(pattern="^(evaluate|train|merge|save|done)$")]


class _Unfit(Exception):
    """What is wrong with a checkpoint, in one line."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        task: number of the task, from 1; 0: the base model.
        phase: the one to begin or to resume.
        step: optimizer steps done in the phase; above 0 in the middle of a task's training.
        global_step: optimizer steps done in the run.
        ledger, results: what the two hold, as JSON.
        kept: the file of what the method keeps, by path relative to the run folder, with its SHA-256.
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
    """A checkpoint that was read and found whole; `tensors` is empty between phases."""

    progress: Progress
    tensors: dict[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of a run in a folder (on rank 0).

    Args:
        folder: where they lie, in the run folder.
        run: names the run; a checkpoint with another name is not taken.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._unfit: list[Path] = []  # seen by `latest`

    def write(self, progress: Progress, tensors: dict[str, torch.Tensor], rests_on: dict[str, str]) -> None:
        """Adds a checkpoint, then drops all but the last two.

        Args:
            tensors: what safetensors can hold; may be empty.
            rests_on: SHA-256 of other files without which it is worth nothing, by path relative to the run folder.

        Raises:
            OSError: it cannot be written; the earlier ones are as they were.
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
        """The newest checkpoint that is whole and of this run, and what is wrong with those that are newer.

        Raises:
            UserError: there are checkpoints, and none can be used.
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
            # read, not mapped: a file that is mapped cannot be removed everywhere
            return Checkpoint(progress, load(state.read_bytes()) if state.exists() else {}), problems
        if problems:
            raise UserError(f"no checkpoint can be used: {'; '.join(problems)}; `--resume never` starts over")
        return None, []

    def _present(self) -> list[Path]:
        """Oldest first; what was never finished has another kind of name."""
        return sorted(path for path in self.folder.glob("*") if re.fullmatch(r"[0-9]{8,}", path.name))

    def _read(self, folder: Path) -> Progress:
        """The position of a checkpoint whose files are all as they were written; raises _Unfit."""
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
