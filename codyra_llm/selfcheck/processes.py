"""Runs functions in separate processes, so that a part's effect on device, libraries and allocator is isolated.

This module imports nothing heavy: a new process is set up before anything else is loaded.
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
    """Calls a function in a new process, and kills it with all its child processes when its time is over.

    Args:
        target: "module:function".
        arguments: of the function; they must be picklable.
        log: the file that its output is appended to.
        seconds: time limit.
        environment: environment variables that are set from the start of the process.
        fork: whether to fork this process, which saves imports; not possible with CUDA.

    Returns:
        The exit status, negative for the signal that ended the process; None if its time was over.
    """
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    process = context.Process(target=_work, args=(target, list(arguments), str(log)))
    with _environment(environment or {}):
        process.start()
    process.join(max(0.0, seconds))
    in_time = process.exitcode is not None
    with suppress(ProcessLookupError):  # also kills processes that it has left running
        os.killpg(process.pid, signal.SIGKILL)
    if not in_time:
        process.kill()  # if it was not yet the leader of a process group
    process.join()
    return process.exitcode if in_time else None


def resolve(target: str) -> Any:
    """Returns the function that "module:function" names."""
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
