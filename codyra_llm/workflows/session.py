"""What every command works in: the ranks, rank 0's folder, the log, and the request to stop."""

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
        ranks: this process among those of the command.
        folder: where rank 0 writes, an `OutputFolder`; None on the other ranks.
        stop: whether the command was asked to stop.
        log_name: the file of the log in the folder.
        notes: warnings that wait for the log to be open.
    """

    ranks: Ranks
    folder: Any
    stop: StopRequest
    log_name: str
    is_open: bool = False
    notes: list[str] = field(default_factory=list)

    def on_rank_0(self, action: Callable[[], Any]) -> Any:
        """What `action` gives on rank 0, None on the others; where it fails, it fails on every rank."""
        return on_rank_0(self.ranks, action)

    def load(
        self,
        source: Source,
        config: RunConfig,
        deepspeed_json: dict[str, Any],
        end_ids: Iterable[int] = (),
        domain: Domain = TEXT,
    ) -> PreTrainedModel:
        """The model of a configuration, placed as the DeepSpeed configuration says.

        Args:
            end_ids: that end its answers beside its own: those of chat templates.
            domain: says whether it can be run.
        """
        model = load_base(source, config, deepspeed_json, self.ranks, self.note, domain.check_model)
        add_end_ids(model, end_ids)
        return model

    def note(self, text: str) -> None:
        """A warning, in the log as soon as that is open."""
        if self.is_open:
            LOG.warning(text)
        else:
            self.notes.append(text)

    def open(self, settings: str = "", **options: Any) -> None:
        """Opens folder and log; the folder is as it was until here. The log begins with `settings` and the notes.

        Args:
            options: of the folder's `open`.
        """
        self.on_rank_0(lambda: self.folder.open(**options))
        self.open_log(settings)

    def open_log(self, settings: str = "") -> None:
        """Opens the log alone, for a folder that another command has opened."""
        start_log(self.folder.path / self.log_name if self.folder else None)
        if settings:
            LOG.info(f"settings: {settings}; all others by default")
        for note in self.notes:
            LOG.warning(note)
        self.is_open = True


@contextmanager
def open_session(ranks: Ranks, make_folder: Callable[[], Any], log_name: str) -> Iterator[Session]:
    """A session over rank 0's folder, which is locked until the end, however that comes.

    When the command has stopped as it was asked to, the folder and the log say so.

    Args:
        make_folder: called on rank 0; raises UserError where the folder is another's.
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
