"""A finished run, and its model after each task: the base model plus the ledger's entries up to that task."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from codyra_llm.config import RunConfig, load_config
from codyra_llm.distributed.ranks import broadcast
from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.ledger.apply import find_original, merge_entries
from codyra_llm.ledger.combination import combination
from codyra_llm.ledger.ledger import Ledger, check_base, read_ledger
from codyra_llm.methods import METHODS
from codyra_llm.methods.hooks import overrides
from codyra_llm.models.source import Source
from codyra_llm.results.schema import RunResults, read_results
from codyra_llm.workflows.session import Session


@dataclass(frozen=True)
class FinishedRun:
    """The files of a finished run.

    Attributes:
        path: the run folder.
        results: its results.
        ledger: its ledger.
        begun: number of entries in its ledger before the run's own.
    """

    path: Path
    results: RunResults
    ledger: Ledger
    begun: int

    @property
    def extended(self) -> Ledger:
        """The ledger before the run's first task."""
        return dataclasses.replace(self.ledger, entries=self.ledger.entries[: self.begun])


def saved_config(run: Path) -> RunConfig:
    """Returns the configuration of the run in a folder, with the folder's present path as output_dir.

    Raises:
        UserError: there is no run in the folder.
    """
    return dataclasses.replace(load_config(run / "config.yaml"), output_dir=str(run))


def open_finished(session: Session, run: Path, after: Sequence[str] = ()) -> FinishedRun:
    """Reads a run's files on rank 0, for all ranks.

    Args:
        session: the session of the command.
        run: the run folder.
        after: tasks that the run must have learned.

    Raises:
        UserError: the run is not finished, its folder is damaged, or its method serves with more than the ledger.
    """
    results, ledger = broadcast(session.on_rank_0(lambda: (read_results(run), read_ledger(run / "ledger"))))
    if not results.finished:
        raise UserError(f"{run}: the run is not finished; start it again, and it resumes")
    if unknown := sorted(set(after) - set(results.tasks)):
        raise UserError(f"--after {', '.join(unknown)}: not a task of this run; it has {', '.join(results.tasks)}")
    if overrides(METHODS[results.config["method"]], "serving"):
        raise UserError(
            f"{run}: method {results.config['method']} serves with more than the weights of a ledger; set what is "
            "to be measured when the run is started"
        )
    return FinishedRun(run, results, ledger, _begun_with(ledger, results.tasks))


def _begun_with(ledger: Ledger, tasks: Sequence[str]) -> int:
    """Returns the number of entries before the run's own; adapters may have been appended since the run."""
    learned = [number for number, entry in enumerate(ledger.entries, 1) if entry.settings]
    begun = max(learned, default=0) - len(tasks)
    own = [entry.task for entry in ledger.entries[max(begun, 0) : begun + len(tasks)]]
    if own != list(tasks):
        raise UserError(
            f"the ledger has {', '.join(own) or 'nothing'} where the run learned {', '.join(tasks)}; "
            "restore the folder `ledger` of this run"
        )
    return begun


def rebuilt(
    finished: FinishedRun, session: Session, config: RunConfig, source: Source, model: PreTrainedModel
) -> Iterator[Stage]:
    """Yields each stage of a run after setting the model to its state at that stage.

    Args:
        finished: the run.
        session: the session of the command.
        config: the configuration.
        source: the run's base model.
        model: the base model, loaded; it is changed in place.

    Raises:
        UserError: the base model is not that of the run, or an entry is incompatible with it.
    """
    check_base(finished.ledger, source)
    original = find_original(config, source)
    combine = combination(finished.ledger.combined, "the ledger")
    folder = finished.path / "ledger" if session.folder else None
    for stage in finished.results.stages:
        entries = [entry.name for entry in finished.ledger.entries[: finished.begun + stage.number]]
        merge_entries(model, original, folder, entries, session.ranks, stage.number > 0, combine)
        yield stage
