"""Locks between processes, also on file systems without locks (NFS or Lustre without `flock`)."""

import atexit
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from codyra_llm.errors import UserError
from codyra_llm.files import MODE

LOG = logging.getLogger(__name__)
NAME = ".lock"
_held: dict[Path, "FolderLock"] = {}
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 45.0  # after this time without a beat, an owner on another host is considered gone
SETTLE_SECONDS = 1.0  # without file locks: wait after a claim; of several processes that claim at once, the last wins
SIZE = 1024  # bytes of a claim, which replaces the one before in a single write


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """A context that only one process at a time can be in for a lock file, which is created in an existing folder.

    If the file system has no locks, several can: files written in the context must be complete before they are renamed.

    Raises:
        OSError: the file cannot be created.
    """
    descriptor = _open(path)
    try:
        _try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def claim(folder: Path) -> "FolderLock":
    """Returns this process's claim on a folder: an existing one, or a new one.

    Raises:
        UserError: another process has claimed the folder.
        OSError: the claim cannot be written.
    """
    held = _held.get(folder.resolve())
    if held and held.is_whole():
        return held
    _held[folder.resolve()] = claimed = FolderLock(folder)
    return claimed


@atexit.register
def release_all() -> None:
    """Releases all claims of this process, for a program that continues after a failure."""
    for held in list(_held.values()):
        held.release()


def _leave_to_parent() -> None:
    """Closes the lock files in a forked child, so that the parent's claims end with the parent."""
    for held in _held.values():
        held.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """One process's claim on an output folder, in its file `.lock`: host, process, start, and a beat.

    The claim ends with the process. On one host the kernel ensures that or, without file locks, the process id and its
    start time are compared. A claim from another host is valid as long as its beat changes.

    Raises:
        UserError: another process has claimed the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._end = threading.Event()
        self._claim: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "beat": 0,
        }
        self._descriptor = self._open()
        try:
            locked = _try_lock(self._descriptor, wait=False)
            self._refuse_if_claimed(locked)
            self._write()
            if not locked:
                time.sleep(SETTLE_SECONDS)
                if not self._is_mine():
                    raise self._refusal(_read_claim(self.path))
        except BlockingIOError:
            self.close()
            raise self._refusal(_read_claim(self.path)) from None
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def is_whole(self) -> bool:
        """True if the file still exists; the folder may have been removed and created again."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        return False

    def release(self) -> None:
        """Releases the folder."""
        _held.pop(self.path.parent.resolve(), None)
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the file; it is unlocked when the last process closes it."""
        with suppress(OSError):
            os.close(self._descriptor)

    def _open(self) -> int:
        while True:
            descriptor = _open(self.path)
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            os.close(descriptor)  # its owner has removed the file in the meantime

    def _refuse_if_claimed(self, locked: bool) -> None:
        claim = _read_claim(self.path)
        if claim is None:
            return
        if claim.get("host") == self._claim["host"]:
            if not locked and _lives(claim):
                raise self._refusal(claim)
            return
        LOG.warning(f"{self.path.parent}: {_who(claim)} held it last; waiting {PATIENCE_SECONDS:g} s for its next beat")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 5)
            if (now := _read_claim(self.path)) != claim:
                raise self._refusal(now or claim)
        LOG.warning(f"{self.path.parent}: {_who(claim)} has ended without giving it free; this start takes it")

    def _refusal(self, claim: dict[str, Any] | None) -> UserError:
        return UserError(
            f"{self.path.parent}: is in use by {_who(claim)}; wait for it or stop it, or choose another folder"
        )

    def _write(self) -> None:
        os.pwrite(self._descriptor, json.dumps(self._claim).encode().ljust(SIZE), 0)
        os.ftruncate(self._descriptor, SIZE)
        os.fsync(self._descriptor)  # otherwise another host sees it late

    def _is_mine(self) -> bool:
        claim = _read_claim(self.path) or {}
        return all(claim.get(name) == self._claim[name] for name in ("host", "pid", "started"))

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with suppress(OSError):  # a full disk must not end the run here
                if not self._is_mine() and self.is_whole():
                    LOG.error(f"{self.path.parent}: {_who(_read_claim(self.path))} has taken it; stop one of the two")
                    return
                self._claim["beat"] += 1
                self._write()


def _open(path: Path) -> int:
    """Opens a file to lock, and creates it if needed; links are not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


def _try_lock(descriptor: int, wait: bool) -> bool:
    """Locks the file; returns False if the file system has no locks. Raises BlockingIOError if another has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _read_claim(path: Path) -> dict[str, Any] | None:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return claim if isinstance(claim, dict) else None


def _who(claim: dict[str, Any] | None) -> str:
    if not claim:
        return "another process"
    return f"process {claim.get('pid')} on {claim.get('host')} since {claim.get('since')}"


def _lives(claim: dict[str, Any]) -> bool:
    try:
        return abs(psutil.Process(claim["pid"]).create_time() - claim["started"]) < 1 and claim["pid"] != os.getpid()
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False
