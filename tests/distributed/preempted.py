"""The continual run in ranks that are struck at chosen moments.

python -m tests.distributed.preempted < JSON list of sessions > JSON list of what became of them

A session: {"config": {dotted name: value}, "ranks": 1, "strike": strike or null, "watch": file or null}. A strike is
[rank, moment, how]: the moment is the n-th call of a function of codyra_llm on that rank (but for NOT_COUNTED), or of
those of one name ("write_entry:2"), or (with a fraction) seconds; how is the name of a signal, or "stop file". With
"watch", rank 0 writes the names of all functions it calls, in order, to that file. The answer for each session is the
list of its ranks' exit statuses.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codyra_llm.command import main
from codyra_llm.config import REPOSITORY, load_config
from codyra_llm.workflows import train
from tests.distributed.forked import fork_ranks

PACKAGE = str(REPOSITORY / "codyra_llm") + os.sep
# How often a layer's own functions are called depends on the ZeRO stage: moments are not counted in them.
NOT_COUNTED = tuple(f"{PACKAGE}adapter{os.sep}{name}.py" for name in ("layer", "functional", "products"))


def session(config: dict, ranks: int = 1, strike: list | None = None, watch: str | None = None) -> list[int]:
    """Runs the ranks and returns their exit statuses."""

    def work(rank: int) -> int:
        called: list[str] = []
        if strike and strike[0] == rank:
            act = _act(strike[2], config["output_dir"])
            if isinstance(strike[1], float):
                threading.Timer(strike[1], act).start()
            else:
                sys.setprofile(_counter(called, strike[1], act))
        elif watch and rank == 0:
            sys.setprofile(_counter(called))
        try:
            main(lambda: train.run(load_config(None, config)) and None)
        finally:
            sys.setprofile(None)
            if watch and rank == 0:
                Path(watch).write_text("\n".join(called))
        return 0

    return fork_ranks(ranks, work, config["output_dir"] + ".log")


def _act(how: str, output: str) -> Callable[[], None]:
    if how == "stop file":
        return (Path(output) / "stop").touch
    return lambda: os.kill(os.getpid(), signal.Signals[how])


def _counter(called: list[str], moment: int | str = 0, act: Callable[[], None] | None = None) -> Callable:
    name, _, number = str(moment).rpartition(":")
    last = int(number)

    def count(frame: Any, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and file not in NOT_COUNTED:
            if name and frame.f_code.co_name != name:
                return
            called.append(frame.f_code.co_name)
            if act and len(called) == last:
                act()

    return count


if __name__ == "__main__":
    outcomes = [session(**wanted) for wanted in json.load(sys.stdin)]
    print(json.dumps(outcomes))
