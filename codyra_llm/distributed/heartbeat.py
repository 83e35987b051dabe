"""Which ranks still run: each counts in the run's store, so that one that waits in vain can name the missing."""

import atexit
import threading
import time
from datetime import timedelta

from torch.distributed import Store

BEAT_SECONDS = 2.0
LISTEN_SECONDS = 3 * BEAT_SECONDS


class Heartbeat:
    """This rank's beat, in a thread, and the beats of the others.

    Args:
        store: that the ranks share; a connection of its own is made, since the process group uses this one.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.size, self._store = size, store.clone()  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=LISTEN_SECONDS))
        self._lock, self._key, self._end = threading.Lock(), f"beat/{rank}", threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the beat. Done when Python exits, for a thread that returns from the store later aborts the process."""
        self._end.set()
        self._thread.join(LISTEN_SECONDS + BEAT_SECONDS)  # as long as the store may keep it

    def lost(self) -> list[int]:
        """The ranks whose beat does not change for some seconds; rank 0 alone where it, and the store, are gone."""
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
            except RuntimeError:  # rank 0 has ended, and with it the store
                return
            self._end.wait(BEAT_SECONDS)
