"""Stop requests: SIGTERM, SIGUSR1, Ctrl-C or a trigger file; all ranks agree before they act on one."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from codyra_llm.distributed.ranks import Ranks, any_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Records, within its `with` block, that this process was asked to stop; `agreed` returns the same on every rank.

    If blocks are nested, what asks one asks the other: a signal or a file that stops a comparison stops its run, and a
    signal that comes too late for the run still stops the comparison.

    Args:
        ranks: the ranks that must agree.
        trigger: a file whose existence requests a stop; None on ranks that do not check it.
    """

    def __init__(self, ranks: Ranks, trigger: Path | None) -> None:
        self.ranks, self.trigger = ranks, trigger
        self._signalled = False
        self._outer: StopRequest | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python sets signal handlers in this thread only
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            outer = getattr(self._before[SIGNALS[0]], "__self__", None)
            self._outer = outer if isinstance(outer, StopRequest) else None
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Returns whether any rank was asked to stop, the same on all ranks. Every rank must call it."""
        asked = any(each._signalled or (each.trigger and os.path.exists(each.trigger)) for each in self._chain())
        return any_rank(asked, self.ranks.device)

    def _chain(self) -> "Iterator[StopRequest]":
        """Yields this block and those around it."""
        each: StopRequest | None = self
        while each:
            yield each
            each = each._outer

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and any(each._signalled for each in self._chain()):  # a second Ctrl-C
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.ranks.is_main:
            print("\nstopping as soon as all is saved; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        for each in self._chain():
            each._signalled = True
