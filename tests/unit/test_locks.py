"""Locks of run folders, on file systems with and without `flock`; locks of caches, which never hang."""

import errno
import fcntl
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from codyra_llm import locks
from codyra_llm.errors import UserError
from codyra_llm.locks import claim, exclusive


def try_to_claim(folder: Path, answer: "multiprocessing.Queue[Any]") -> None:
    try:
        claim(folder)
        answer.put("claimed")
    except UserError as error:
        answer.put(str(error))


def in_another_process(folder: Path) -> str:
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    locks._held.clear()
    process = context.Process(target=try_to_claim, args=(folder, answer))
    process.start()
    found = answer.get(timeout=30)
    process.join()
    return found


@pytest.fixture(params=[None, errno.ENOLCK, errno.ENOSYS])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """A file system with locks (None), or without: the error number that `flock` raises there."""
    if request.param:

        def refuse(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_a_second_process_is_refused_until_the_first_is_done(file_system: int | None, tmp_path: Path) -> None:
    first = claim(tmp_path)
    assert claim(tmp_path) is first
    line = in_another_process(tmp_path)
    assert f"is in use by process {os.getpid()} on " in line
    first.release()
    assert in_another_process(tmp_path) == "claimed"


def test_what_a_dead_process_left_does_not_count(file_system: int | None, tmp_path: Path) -> None:
    assert in_another_process(tmp_path) == "claimed"
    assert (tmp_path / ".lock").exists()
    claim(tmp_path).release()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("beats", [True, False])
def test_a_claim_of_another_host_counts_as_long_as_it_beats(
    beats: bool, file_system: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.3)
    owner = {"host": "elsewhere", "pid": 1, "started": 1.0, "since": "2026-01-01T00:00:00+00:00", "beat": 0}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    real = locks._read_claim

    def read(path: Path) -> dict[str, Any] | None:
        found = real(path)
        if beats and found and found["host"] == "elsewhere":
            owner["beat"] += 1
            path.write_text(json.dumps(owner))
        return found

    monkeypatch.setattr(locks, "_read_claim", read)
    if beats:
        with pytest.raises(UserError, match="in use by process 1 on elsewhere since 2026"):
            claim(tmp_path)
    else:
        claim(tmp_path).release()


def test_a_process_number_that_was_given_again_is_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    owner = json.loads((claim(tmp_path).path).read_text())
    locks._held.clear()
    started = psutil.Process(os.getppid()).create_time()
    (tmp_path / ".lock").write_text(json.dumps({**owner, "pid": os.getppid(), "started": started}))
    with pytest.raises(UserError, match="in use by"):
        claim(tmp_path)
    (tmp_path / ".lock").write_text(json.dumps({**owner, "pid": os.getppid(), "started": started - 100}))
    claim(tmp_path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', "\x00"])
def test_a_damaged_claim_is_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.3)
    (tmp_path / ".lock").write_text(content)
    claim(tmp_path).release()


def test_a_cache_is_used_without_locks(file_system: int | None, tmp_path: Path) -> None:
    (tmp_path / "x.lock").touch()
    with exclusive(tmp_path / "x.lock"):
        pass
