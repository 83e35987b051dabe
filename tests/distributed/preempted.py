"""Runs the continual run in forked processes that kill themselves at chosen moments; imports are paid for once.

python tests/distributed/preempted.py < JSON list of sessions > JSON list of what became of them

A session: {"config": {dotted name: value}, "ranks": 1, "strike": strike or null, "watch": file or null}. A strike is
[rank, moment, how]: the moment is the n-th call of a function of codyra_llm on that rank, or (with a fraction) seconds;
how is the name of a signal, or "stop file". With "watch", rank 0 writes the names of all functions it calls, in order,
to that file. The answer for each session is the list of its ranks' exit statuses, a negative one being the signal.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codyra_llm import continual
from codyra_llm.command import main
from codyra_llm.config import REPOSITORY, load_config

PACKAGE = str(REPOSITORY / "codyra_llm") + os.sep


def session(config: dict, ranks: int = 1, strike: list | None = None, watch: str | None = None) -> list[int]:
    """Forks the ranks, waits for them, and kills those that are left when one was killed, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _rank(config, rank, ranks, port, strike, watch)
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


def _rank(config: dict, rank: int, ranks: int, port: int, strike: list | None, watch: str | None) -> None:
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    log = os.open(config["output_dir"] + f".rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    called: list[str] = []
    if strike and strike[0] == rank:
        act = _act(strike[2], config["output_dir"])
        if isinstance(strike[1], float):
            threading.Timer(strike[1], act).start()
        else:
            sys.setprofile(_counter(called, strike[1], act))
    elif watch and rank == 0:
        sys.setprofile(_counter(called))
    status = 1
    try:
        main(lambda: continual.run(load_config(None, config)) and None)
        status = 0
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.setprofile(None)
    if watch and rank == 0:
        Path(watch).write_text("\n".join(called))
    os._exit(status)


def _act(how: str, output: str) -> Callable[[], None]:
    if how == "stop file":
        return (Path(output) / "stop").touch
    return lambda: os.kill(os.getpid(), signal.Signals[how])


def _counter(called: list[str], last: int = 0, act: Callable[[], None] | None = None) -> Callable:
    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_name)
            if act and len(called) == last:
                act()

    return count


if __name__ == "__main__":
    outcomes = [session(**wanted) for wanted in json.load(sys.stdin)]
    print(json.dumps(outcomes))
