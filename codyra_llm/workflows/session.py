"""The context of every command: the ranks, rank 0's folder, the log, and the stop request."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from codyra_llm.config import RunConfig
from codyra_llm.distributed.ranks import Ranks, on_rank_0
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.domains.base import Domain
from codyra_llm.domains.text.domain import TEXT
from codyra_llm.engine.zero import load_base
from codyra_llm.errors import Stopped
from codyra_llm.models.save import add_end_ids
from codyra_llm.models.source import Source
from codyra_llm.report.folder import start_log

LOG = logging.getLogger(__name__)


@dataclass
class Session:
    """One start of a command.

    Attributes:
        ranks: this process of the command.
        folder: the `OutputFolder` that rank 0 writes to; None on other ranks.
        stop: whether the command was asked to stop.
        log_name: the log file's name in the folder.
        is_open: True once the log is open.
        notes: warnings to be logged once the log is open.
    """

    ranks: Ranks
    folder: Any
    stop: StopRequest
    log_name: str
    is_open: bool = False
    notes: list[str] = field(default_factory=list)

    def on_rank_0(self, action: Callable[[], Any]) -> Any:
        """Returns the result of `action` on rank 0, None on the others; if it fails, it fails on every rank."""
        return on_rank_0(self.ranks, action)

    def load(
        self,
        source: Source,
        config: RunConfig,
        deepspeed_json: dict[str, Any],
        end_ids: Iterable[int] = (),
        domain: Domain = TEXT,
    ) -> PreTrainedModel:
        """Loads the model of a configuration, placed as the DeepSpeed configuration specifies.

        Args:
            source: the model's source.
            config: the configuration.
            deepspeed_json: the user's part of the DeepSpeed configuration.
            end_ids: tokens that end its answers in addition to its own: those of chat templates.
            domain: checks that the model can be run.
        """
        model = load_base(source, config, deepspeed_json, self.ranks, self.note, domain.check_model)
        add_end_ids(model, end_ids)
        return model

    def note(self, text: str) -> None:
        """Logs a warning, at once or when the log is opened."""
        if self.is_open:
            LOG.warning(text)
        else:
            self.notes.append(text)

    def open(self, settings: str = "", **options: Any) -> None:
        """Opens folder and log, which starts with `settings` and the notes; the folder is unchanged until this call.

        Args:
            settings: a description of the settings.
            options: arguments of the folder's `open`.
        """
        self.on_rank_0(lambda: self.folder.open(**options))
        self.open_log(settings)

    def open_log(self, settings: str = "") -> None:
        """Opens only the log, for a folder that another command has opened."""
        start_log(self.folder.path / self.log_name if self.folder else None)
        if settings:
            LOG.info(f"settings: {settings}; all others by default")
        for note in self.notes:
            LOG.warning(note)
        self.is_open = True


@contextmanager
def open_session(ranks: Ranks, make_folder: Callable[[], Any], log_name: str) -> Iterator[Session]:
    """A session over rank 0's folder, which is locked until the session ends, even by an error.

    If the command stops because it was asked to, this is recorded in the folder and in the log.

    Args:
        ranks: the ranks.
        make_folder: called on rank 0; raises UserError if the folder is in use or belongs to something else.
        log_name: the log file's name in the folder.
    """
    folder = on_rank_0(ranks, make_folder)
    try:
        on_rank_0(ranks, lambda: folder.clear_stop_files())
        with StopRequest(ranks, folder.trigger if folder else None) as stop:
            try:
                yield Session(ranks, folder, stop, log_name)
            except Stopped as stopped:
                where = str(stopped)
                on_rank_0(ranks, lambda: folder.write_stopped(where))
                LOG.info(f"\nstopped {where}, as asked; the same command resumes from there")
                raise
    finally:
        if folder:
            folder.unlock()
