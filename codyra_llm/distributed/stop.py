"""Stop requests: SIGTERM, SIGUSR1, Ctrl-C or a trigger file; all ranks agree before anything is done about one."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from codyra_llm.distributed.ranks import Ranks, any_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Notes, within its `with` block, that this process was asked to stop; `agreed` tells every rank alike.

    In the block of another one, both note it: what comes too late for a run is not lost to the comparison around it.

    Args:
        ranks: those that must agree.
        trigger: a file whose appearance asks as well; None on ranks that do not look for it.
    """

    def __init__(self, ranks: Ranks, trigger: Path | None) -> None:
        self.ranks, self.trigger = ranks, trigger
        self._signalled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handler
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all. Every rank must call it."""
        asked = self._signalled or (self.trigger is not None and os.path.exists(self.trigger))
        return any_rank(asked, self.ranks.device)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled:  # a second Ctrl-C
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.ranks.is_main:
            print("\nstopping as soon as all is saved; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        self._signalled = True
        outer = getattr(self._before[number], "__self__", None)
        if isinstance(outer, StopRequest):
            outer._signalled = True
