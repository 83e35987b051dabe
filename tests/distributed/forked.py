"""Ranks as forks of a process that has imported everything, which takes far longer than a tiny model's run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.conftest import REPOSITORY


def run_forked(module: str, jobs: list[Any], timeout: float = 1500) -> list[list[int]]:
    """Runs `python -m module`, which takes jobs as JSON and prints, last, the exit statuses of each one's ranks."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(jobs),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> str:
    """A port of this host that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def fork_ranks(ranks: int, work: Callable[[int], int], log: str) -> list[int]:
    """Runs work(rank) in forks with a launcher's environment, output going to the log; returns their exit statuses.

    A status below zero is the signal that ended the rank. When one is killed, those that are left are killed as well,
    as a launcher would.
    """
    port = free_port()
    children = {}
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _rank(rank, ranks, port, work, log)
        children[child] = rank
    statuses = [0] * ranks
    while children:
        child, status = os.wait()
        statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if os.WIFSIGNALED(status):
            time.sleep(0.2)
            for other in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return statuses


def _rank(rank: int, ranks: int, port: str, work: Callable[[int], int], log: str) -> None:
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}})
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        status = work(rank)
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.setprofile(None)
    os._exit(status)
