"""Tracking by Weights & Biases and MLflow, with accelerate's trackers: one record per run with settings and curves."""

import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from codyra_llm.config import RunConfig, decisive
from codyra_llm.errors import UserError
from codyra_llm.files import read_json, write_text
from codyra_llm.options import show_value

LOG = logging.getLogger(__name__)
PROJECT = "codyra_llm"
Axis = Literal["step", "task"]  # optimizer steps of the run, or tasks that are learned


def check_tracking(config: RunConfig) -> None:
    """Raises UserError if a configured tracker is not installed."""
    for name in STARTS.keys() & set(config.tracking):
        if not all(map(importlib.util.find_spec, (name, "accelerate"))):
            raise UserError(f"tracking: {name} is not installed; pip install 'codyra_llm[track]'")


class Trackers:
    """The trackers of one start of a run, on rank 0; TensorBoard belongs to the reporter.

    If a tracker fails later, there is a warning and the run continues without it.

    Args:
        config: of the run.
        folder: of the run; `tracking.json` in it contains the ids by which a resumed run finds its records.

    Raises:
        UserError: a tracker does not start.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.started: dict[str, Any] = {}
        file = folder / "tracking.json"
        ids: dict[str, str] = read_json(file) if file.exists() else {}
        settings = {name: show_value(value) for name, value in decisive(config).items()}
        for name in [name for name in config.tracking if name in STARTS]:
            try:
                self.started[name], ids[name] = STARTS[name](folder, ids.get(name), settings)
            except Exception as error:  # services and their libraries raise many types of errors
                self.close()
                hint = "; WANDB_MODE=offline needs neither account nor network" if name == "wandb" else ""
                raise UserError(f"tracking: {name} does not start: {' '.join(str(error).split())}{hint}") from None
        if self.started:
            write_text(file, json.dumps(ids) + "\n")

    def log(self, values: Mapping[str, float], at: int, axis: Axis) -> None:
        """Logs numbers by name, after an optimizer step or a task."""
        if "wandb" in self.started:  # the step is logged as a value: wandb's own steps only increase, and count calls
            self._guarded("wandb", lambda tracker: tracker.log({**values, axis: at}))
        if "mlflow" in self.started:
            self._guarded("mlflow", lambda tracker: tracker.log(dict(values), step=at))

    def close(self) -> None:
        """Ends the records of this start, with all logged values."""
        for name in list(self.started):
            self._guarded(name, lambda tracker: tracker.finish())
        self.started.clear()

    def _guarded(self, name: str, action: Callable[[Any], None]) -> None:
        try:
            action(self.started[name])
        except Exception as error:
            del self.started[name]
            LOG.warning(f"no more tracking by {name}: {' '.join(str(error).split())}")


def _start_wandb(folder: Path, known: str | None, settings: dict[str, str]) -> tuple[Any, str]:
    import wandb
    from accelerate import PartialState
    from accelerate.tracking import WandBTracker

    PartialState()  # accelerate cannot log without it
    wandb.teardown()  # the service of an earlier run in this process would not work for a new one
    name = known or uuid.uuid4().hex[:8]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    tracker = WandBTracker(project, id=name, name=folder.resolve().name, dir=str(folder), resume="allow")
    tracker.start()
    for axis, curves in (("step", "train/*"), ("step", "validation/*"), *(("task", f"{each}/*") for each in OF_TASKS)):
        tracker.run.define_metric(axis)
        tracker.run.define_metric(curves, step_metric=axis)
    tracker.store_init_configuration(settings)
    return tracker, name


def _start_mlflow(folder: Path, known: str | None, settings: dict[str, str]) -> tuple[Any, str]:
    import mlflow
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker

    PartialState()
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db")
    tracker = MLflowTracker(PROJECT, str(folder.resolve() / "mlflow"), known, run_name=folder.resolve().name)
    tracker.start()
    if not known:
        tracker.store_init_configuration(settings)
    return tracker, str(tracker.active_run.info.run_id)


OF_TASKS = ("rank", "score", "answer_nll", "general")
STARTS: dict[str, Callable[[Path, str | None, dict[str, str]], tuple[Any, str]]] = {
    "wandb": _start_wandb,
    "mlflow": _start_mlflow,
}
