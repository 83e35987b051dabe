"""Locks between processes, also on file systems that have none (NFS or Lustre without `flock`)."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import psutil

from codyra_llm.errors import UserError

NAME = ".lock"
_held: dict[Path, "FolderLock"] = {}
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 45.0  # without a beat, an owner on another host is gone


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in one for the same lock file, which is made in an existing folder.

    Where the file system has no locks, several may be: what is written there must be complete before it is renamed.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("a") as file:
        _try_lock(file, wait=True)
        yield


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


def release_all() -> None:
    """Gives free whatever this process holds: after a failure, in a program that goes on."""
    for held in list(_held.values()):
        held.release()


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
        self._file = self._open()
        try:
            self._refuse_if_claimed(_try_lock(self._file, wait=False))
        except BlockingIOError:
            self._file.close()
            raise self._refusal(_read_claim(self.path)) from None
        except BaseException:
            self._file.close()
            raise
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def is_whole(self) -> bool:
        """Whether the file is still there: the folder may have been removed and made again."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        return False

    def release(self) -> None:
        """Gives the folder free."""
        _held.pop(self.path.parent.resolve(), None)
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _open(self) -> IO[str]:
        while True:
            file = self.path.open("a+")
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()  # whoever had it has taken it away since

    def _refuse_if_claimed(self, locked: bool) -> None:
        claim = _read_claim(self.path)
        if claim is None:
            return
        if claim.get("host") == self._claim["host"]:
            if not locked and _lives(claim):
                raise self._refusal(claim)
            return
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 5)
            if (now := _read_claim(self.path)) != claim:
                raise self._refusal(now or claim)

    def _refusal(self, claim: dict[str, Any] | None) -> UserError:
        who = "another process"
        if claim:
            who = f"process {claim.get('pid')} on {claim.get('host')} since {claim.get('since')}"
        return UserError(f"{self.path.parent}: is in use by {who}; wait for it or stop it, or choose another folder")

    def _write(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(self._claim))
        self._file.flush()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            self._claim["beat"] += 1
            with suppress(OSError):  # a full disk must not end the run here
                self._write()


def _try_lock(file: IO[str], wait: bool) -> bool:
    """Whether the file system has locks; the file has one then. Raises BlockingIOError where another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _read_claim(path: Path) -> dict[str, Any] | None:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return claim if isinstance(claim, dict) else None


def _lives(claim: dict[str, Any]) -> bool:
    try:
        return abs(psutil.Process(claim["pid"]).create_time() - claim["started"]) < 1 and claim["pid"] != os.getpid()
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
