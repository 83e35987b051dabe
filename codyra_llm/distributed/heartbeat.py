"""Heartbeats: each rank counts in the run's store, so that a rank that waits in vain can name the missing ones."""

import atexit
import threading
import time
from datetime import timedelta

from torch.distributed import Store

BEAT_SECONDS = 2.0
LISTEN_SECONDS = 3 * BEAT_SECONDS


class Heartbeat:
    """This rank's heartbeat, in a thread, and the heartbeats of the others.

    Args:
        store: the store that the ranks share; it is cloned, since the process group uses this connection.
        rank: this process's rank.
        size: the world size.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.size, self._store = size, store.clone()  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=LISTEN_SECONDS))
        self._lock, self._key, self._end = threading.Lock(), f"beat/{rank}", threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the heartbeat, before Python exits: a thread that returns from the store later aborts the process."""
        self._end.set()
        self._thread.join(LISTEN_SECONDS + BEAT_SECONDS)  # as long as a call of the store may take

    def lost(self) -> list[int]:
        """Returns the ranks whose heartbeat has stopped for some seconds; [0] if rank 0, with the store, is gone."""
        try:
            before = self._counts()
            time.sleep(LISTEN_SECONDS)
            after = self._counts()
        except RuntimeError:
            return [0]
        return [rank for rank in range(self.size) if before[rank] == after[rank]]

    def _counts(self) -> list[int]:
        with self._lock:
            return [self._store.add(f"beat/{rank}", 0) for rank in range(self.size)]

    def _beat(self) -> None:
        while not self._end.is_set():
            try:
                with self._lock:
                    self._store.add(self._key, 1)
            except RuntimeError:  # rank 0 and the store have ended
                return
            self._end.wait(BEAT_SECONDS)
