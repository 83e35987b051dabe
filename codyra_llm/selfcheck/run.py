"""Runs the parts of the self-check one after another, within a total time."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from codyra_llm.errors import UserError
from codyra_llm.selfcheck.outcome import Outcome, Setting
from codyra_llm.selfcheck.parts import PARTS, WITHOUT_GPU, carry_out
from codyra_llm.selfcheck.report import write


def device_of(gpu: bool, cpu: bool) -> str:
    """Returns "cuda" or "cpu": the requested device, else a GPU if there is one.

    Raises:
        UserError: a GPU is requested, and torch finds none.
    """
    if cpu:  # must be set before any library looks for a GPU
        os.environ.update(WITHOUT_GPU)
        return "cpu"
    import torch

    if gpu and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise UserError(f"--gpu: torch {torch.__version__} ({build}) sees no GPU; nvidia-smi says which there are")
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_parts(names: Sequence[str]) -> list[str]:
    """Returns the names of the selected parts: all, or those that begin with one of `names`.

    Raises:
        UserError: no part's name begins with one of them.
    """
    found = [part.name for part in PARTS if not names or part.name.startswith(tuple(names))]
    for name in names:
        if not any(part.name.startswith(name) for part in PARTS):
            raise UserError(f"--parts: no part is called {name}; there are {'; '.join(part.name for part in PARTS)}")
    return found


def selfcheck(device: str, folder: Path, minutes: float, names: Sequence[str], command: list[str]) -> int:
    """Runs parts, prints a line for each, and writes selfcheck.json and selfcheck.md.

    Args:
        device: cpu or cuda.
        folder: for results and logs.
        minutes: time limit for all parts together.
        names: of the parts to run.
        command: the command line.

    Returns:
        The exit status: 1 if a part on correctness failed, else 0.
    """
    began, logs = time.monotonic(), folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(device, Path(scratch), began + 60 * minutes)
        for part in (part for part in PARTS if part.name in names):
            outcome = carry_out(part, setting, logs)
            outcomes.append(outcome)
            reason = f": {outcome.reason}" if outcome.reason else ""
            print(f"{outcome.seconds:6.1f} s  {part.name}: {outcome.status}{reason}", flush=True)
            write(folder, device, time.monotonic() - began, command, outcomes)
    print(f"{time.monotonic() - began:.0f} s; {folder / 'selfcheck.md'}, {folder / 'selfcheck.json'}")
    return int(any(outcome.status == "failed" and outcome.kind == "correctness" for outcome in outcomes))
