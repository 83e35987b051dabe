"""Locks between processes, also on file systems that have none (NFS or Lustre without `flock`)."""

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
PATIENCE_SECONDS = 45.0  # without a beat, an owner on another host is gone
SETTLE_SECONDS = 1.0  # where the file system has no locks: of several that write a claim at once, the last has it then
SIZE = 1024  # bytes of a claim, which is written over the one before in one piece


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in one for the same lock file, which is made in an existing folder.

    Where the file system has no locks, several may be: what is written there must be complete before it is renamed.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _open(path)
    try:
        _try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def claim(folder: Path) -> "FolderLock":
    """This process's claim on a folder: the one that it has already, or a new one.

    Raises:
        UserError: another process holds the folder.
        OSError: it cannot be written.
    """
    held = _held.get(folder.resolve())
    if held and held.is_whole():
        return held
    _held[folder.resolve()] = claimed = FolderLock(folder)
    return claimed


@atexit.register
def release_all() -> None:
    """Gives free whatever this process holds: after a failure, in a program that continues."""
    for held in list(_held.values()):
        held.release()


def _leave_to_parent() -> None:
    """In a forked child: what the parent holds must be free once the parent has ended."""
    for held in _held.values():
        held.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """One process's claim on an output folder, in its file `.lock`: host, process, since when, and a beat.

    The claim ends with the process. On one host the kernel sees to that, or, without file locks, the process number and
    its start time tell. A claim of another host counts as long as its beat changes.

    Raises:
        UserError: another process holds the folder.
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
        """Whether the file is still there: the folder may have been removed and made again."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        return False

    def release(self) -> None:
        """Gives the folder free."""
        _held.pop(self.path.parent.resolve(), None)
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the file, which the last process to do so unlocks."""
        with suppress(OSError):
            os.close(self._descriptor)

    def _open(self) -> int:
        while True:
            descriptor = _open(self.path)
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            os.close(descriptor)  # whoever had it has taken it away since

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
        os.fsync(self._descriptor)  # else another host sees it late

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
    """A file to lock, made where it is not there; a link is not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


def _try_lock(descriptor: int, wait: bool) -> bool:
    """Whether the file system has locks; the file has one then. Raises BlockingIOError where another has it."""
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
