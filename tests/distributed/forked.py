"""Ranks as forks of a process that has imported everything: imports take far longer than a tiny model's run."""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from codyra_llm.config import load_config
from tests.conftest import REPOSITORY

# imports of the workers, done before the first fork
IMPORTED = (
    "codyra_llm.workflows.train",
    "codyra_llm.workflows.evaluate",
    "bitsandbytes",
    "deepspeed.comm.mori",
    "deepspeed.module_inject",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.moe.layer",
    "deepspeed.ops.adam",
    "deepspeed.ops.triton_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "mpl_toolkits.mplot3d",
    "pandas",
    "pyarrow.compute",
    "torch.utils.tensorboard",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
)


def run_forked(module: str, jobs: list[Any], timeout: float = 1500) -> list[list[int]]:
    """Returns the result of `run_jobs(jobs)` of a module: for each job, the exit statuses of its ranks."""
    with tempfile.TemporaryDirectory() as folder:
        request = {"module": module, "jobs": jobs, "environment": dict(os.environ), "folder": folder}
        if not _server().ask(request, timeout):
            raise AssertionError((Path(folder) / "output").read_text()[-4000:])
        found: list[list[int]] = json.loads((Path(folder) / "answer.json").read_text())
        return found


class Server:
    """A process that has imported everything and answers each request in a fork of itself."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        atexit.register(self.end)

    def ask(self, request: dict[str, Any], timeout: float) -> bool:
        """Returns True if a request succeeded; kills the server if it does not reply within `timeout` seconds."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        answer = self.process.stdout.readline() if ready else b""
        if not answer:
            self.end()
        return answer == b"0\n"

    def end(self) -> None:
        """Kills the server and all processes that it has started."""
        _server.cache_clear()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@functools.cache
def _server() -> Server:
    return Server()


def serve() -> None:
    """Answers requests, one per line of standard input, until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not be taken for an answer
    for name in IMPORTED:
        with contextlib.suppress(ModuleNotFoundError):  # module paths differ between versions of libraries
            importlib.import_module(name)
    load_config()  # builds the validators of settings once for all ranks
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _answer(request: dict[str, Any]) -> NoReturn:
    folder, status = Path(request["folder"]), 1
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update({**request["environment"], "OMP_NUM_THREADS": "1"})
    try:
        found = importlib.import_module(request["module"]).run_jobs(request["jobs"])
        (folder / "answer.json").write_text(json.dumps(found))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def free_port() -> str:
    """Returns a free port of this host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def fork_ranks(ranks: int, work: Callable[[int], int], log: str) -> list[int]:
    """Runs work(rank) in forks with a launcher's environment; returns their exit statuses.

    A negative status is the signal that ended the rank. When one rank is killed, the others are killed as well, as by a
    launcher.

    Args:
        ranks: number of ranks.
        work: returns the exit status of a rank.
        log: file to which the output of all ranks is appended.
    """
    port = free_port()
    children = {}
    gc.collect()
    gc.freeze()  # garbage collections of the children need not scan what is imported
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


def _rank(rank: int, ranks: int, port: str, work: Callable[[int], int], log: str) -> NoReturn:
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


if __name__ == "__main__":
    serve()
