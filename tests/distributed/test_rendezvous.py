"""Processes that do not find each other report which are missing, and end."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Meet = Callable[..., list[tuple[int, str, str]]]

# forks a process for each rank once the imports are done
PROGRAM = """
import json, os, sys
from codyra_llm.command import main
from codyra_llm.distributed.environment import this_process
from codyra_llm.distributed.rendezvous import meet

def announce():
    process = this_process()
    store = meet(process, float(sys.argv[2]))
    store.set(f"value/{process.rank}", str(process.rank))
    print([int(store.get(f"value/{rank}")) for rank in range(process.size)], flush=True)
    store.add("read", 1)
    while process.rank == 0 and store.add("read", 0) < process.size:
        pass

children = []
for number, environment in enumerate(json.loads(sys.argv[1])):
    children.append(os.fork())
    if not children[-1]:
        os.environ.update(environment)
        for stream, kind in ((1, "output"), (2, "errors")):
            os.dup2(os.open(f"{sys.argv[3]}/{number}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        main(announce)
        sys.stdout.flush()
        os._exit(0)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


@contextmanager
def listening() -> Iterator[int]:
    """Yields a port on which a socket listens but never replies."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


@pytest.fixture
def meet(tmp_path: Path) -> Meet:
    """Function that runs a process for each rank, all at once; returns their statuses, outputs and errors."""

    def run(ranks: list[int], size: int, port: int, seconds: int, **variables: str) -> list[tuple[int, str, str]]:
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
        environments = [
            {**meeting_point, **_as_rank(rank, size, by_srun="SLURM_JOB_ID" in variables)} for rank in ranks
        ]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(environments), str(seconds), str(tmp_path)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return [
            (status, *((tmp_path / f"{number}.{kind}").read_text() for kind in ("output", "errors")))
            for number, status in enumerate(json.loads(done.stdout))
        ]

    return run


def _as_rank(rank: int, size: int, by_srun: bool) -> dict[str, str]:
    """Returns the environment of a rank on its own host."""
    names = (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID") if by_srun else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    return dict(zip(names, map(str, (rank, size, 0)), strict=True))


def test_all_come(meet: Meet) -> None:
    assert meet([1, 0], 2, free_port(), 60) == [(0, "[0, 1]\n", "")] * 2


def test_all_tasks_of_a_step_come(meet: Meet) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "gpu7"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    assert meet([0, 1], 2, free_port(), 60, **step) == [(0, "[0, 1]\n", "")] * 2


def test_rank_0_says_who_is_missing(meet: Meet) -> None:
    port = free_port()
    (status, _, message), (other_status, _, other) = meet([0, 1], 4, port, 4)
    assert (status, other_status) == (2, 2)
    assert message == (
        f"error: rendezvous at 127.0.0.1:{port}: ranks 2, 3 of 4 did not come within 4 s; "
        "look for what their hosts say, or raise rendezvous_seconds\n"
    )
    assert "Traceback" not in other


def test_where_rank_0_is_missing_another_says_so(meet: Meet) -> None:
    port = free_port()
    assert meet([1], 2, port, 1) == [
        (
            2,
            "",
            f"error: rendezvous at 127.0.0.1:{port}: rank 1 of 2 could not reach it within 1 s (Connection refused); "
            f"rank 0 has to run on 127.0.0.1, and its port {port} be open to the other hosts\n",
        )
    ]
    ((status, _, message),) = meet([1], 2, port, 1, MASTER_ADDR="no-such-host.invalid")
    assert status == 2
    assert "rank 1 of 2 could not reach it within 1 s (Name or service not known)" in message


def test_a_port_that_another_program_has(meet: Meet) -> None:
    with listening() as port:
        of_rank_0, of_rank_1 = meet([0, 1], 2, port, 4)
    for (status, _, message), problem in ((of_rank_0, "cannot serve there"), (of_rank_1, "cannot speak")):
        assert status == 2
        error = [line for line in message.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        assert error[0].startswith(f"error: rendezvous at 127.0.0.1:{port}: rank ")
        assert problem in error[0]


def test_a_rank_that_comes_twice_is_named(meet: Meet) -> None:
    messages = [message for status, _, message in meet([0, 1, 1], 3, free_port(), 4)[1:]]
    assert any("rank 1 came twice; does another run use this port, or is RANK set by hand?" in m for m in messages)


def test_what_waits_in_the_store_later_has_all_the_time_of_a_collective() -> None:
    program = """
from torch.distributed.distributed_c10d import _get_default_store
from codyra_llm.distributed.ranks import leave, start
start(rendezvous_seconds=60, collective_seconds=77)
print(_get_default_store().timeout.total_seconds())
leave()
"""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for rank in ranks:
        output, errors = rank.communicate(timeout=120)
        assert output.splitlines()[-1] == "77.0", errors
