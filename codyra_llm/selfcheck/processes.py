"""Work in a process of its own: what one part does to a device, a library or an allocator reaches no other.

Imports nothing heavy: a new process sets itself up before anything else is loaded.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any


def run_apart(
    target: str,
    arguments: Sequence[Any],
    log: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    fork: bool = False,
) -> int | None:
    """Calls a function in a new process, and ends it with all that it has started when its time is over.

    Args:
        target: "module:function"; arguments must be such as can be pickled.
        log: the file that its output is added to.
        seconds: that it may take.
        environment: variables that are set for it, from its first instruction on.
        fork: as a fork of this process, which has no more to import; not where CUDA is used.

    Returns:
        Its exit status, below zero the signal that ended it; None: its time was over.
    """
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    process = context.Process(target=_work, args=(target, list(arguments), str(log)))
    with _environment(environment or {}):
        process.start()
    process.join(max(0.0, seconds))
    in_time = process.exitcode is not None
    with suppress(ProcessLookupError):  # also what it has left behind
        os.killpg(process.pid, signal.SIGKILL)
    if not in_time:
        process.kill()  # where it was not yet the head of a group
    process.join()
    return process.exitcode if in_time else None


def resolve(target: str) -> Any:
    """The function that "module:function" names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _work(target: str, arguments: list[Any], log: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    resolve(target)(*arguments)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
