"""The rendezvous: ranks register in a store; after a timeout, the missing ranks are reported."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from codyra_llm.distributed.environment import Process, find_meeting_point
from codyra_llm.errors import RendezvousError, UserError

ARRIVED = "arrived"


def meet(process: Process, seconds: float, kind: str = "rank", names: Sequence[str] = ()) -> Store:
    """Waits until every rank has arrived.

    The store is the torchrun agent's if there is one, else rank 0's.

    Args:
        process: this process.
        seconds: how long to wait.
        kind: the kind of process in messages about missing ones.
        names: the processes' names in these messages; by default their ranks.

    Returns:
        A store that all ranks share, ready for a process group.

    Raises:
        RendezvousError: a rank did not arrive within `seconds`, or the rendezvous cannot be reached.
        UserError: the environment names no host or port, or the connection is lost.
    """
    host, port = find_meeting_point()
    where = f"rendezvous at {host}:{port}"
    # the others wait a little longer than rank 0, so that rank 0 reports the missing ranks
    deadline = time.monotonic() + seconds * (1.1 if process.rank else 1.0)
    # torchrun may restart its workers on the same store
    attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = PrefixStore(attempt, _open(process, host, port, where, seconds, deadline))
    keys = [f"came/{rank}" for rank in range(process.size)]
    try:
        if store.add(keys[process.rank], 1) > 1:
            raise RendezvousError(
                f"{where}: rank {process.rank} came twice; does another run use this port, or is RANK set by hand?"
            )
        store.add(ARRIVED, 1)
        # one counter for all ranks: checking every key on every rank would overload the store with hundreds of ranks
        while store.add(ARRIVED, 0) < process.size:
            if time.monotonic() > deadline:
                absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
                missing = ", ".join(names[rank] if names else str(rank) for rank in absent)
                raise RendezvousError(
                    f"{where}: {kind}{'s' * (len(absent) > 1)} {missing} of {process.size} did not come within "
                    f"{seconds:g} s; "
                    "look for what their hosts say, or raise rendezvous_seconds"
                )
            time.sleep(0.1)
    except RuntimeError as error:  # rank 0 has given up and reported the reason
        raise UserError(f"{where}: rank {process.rank} lost the connection: {_first_line(error)}") from None
    return store


def _open(process: Process, host: str, port: int, where: str, seconds: float, deadline: float) -> Store:
    serves = process.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        reason = _wait_for_port(host, port, deadline)
        if reason:
            raise RendezvousError(
                f"{where}: rank {process.rank} of {process.size} could not reach it within {seconds:g} s ({reason}); "
                f"rank 0 has to run on {host}, and its port {port} be open to the other hosts"
            )
    outcome: list[Any] = []

    def connect() -> None:
        try:
            left = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
            outcome.append(TCPStore(host, port, process.size, serves, left, wait_for_workers=False, multi_tenant=True))
        except RuntimeError as error:
            outcome.append(error)

    # TCPStore's own time limit has no effect if another program listens at the port and does not answer
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 1.0))
    if outcome and isinstance(outcome[0], Store):
        return outcome[0]
    reason = _first_line(outcome[0]) if outcome else "something else listens there"
    problem = "cannot serve there" if serves else "cannot speak with what listens there"
    raise RendezvousError(
        f"{where}: rank {process.rank} {problem} ({reason}); "
        "MASTER_ADDR has to be the host of rank 0, and MASTER_PORT a port that is free there (deepspeed and torchrun "
        "take it as --master_port)"
    )


def _wait_for_port(host: str, port: int, deadline: float) -> str | None:
    """Waits until something listens at the port; returns None then, the last error after the deadline."""
    while True:
        try:
            socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 1.0)).close()
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return error.strerror or str(error)
        time.sleep(0.5)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
