"""Identifies this process by the environment variables that torchrun, the deepspeed launcher or srun set.

Imports nothing heavy, so that a command can use it before anything else is loaded.
"""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass

from codyra_llm.errors import RendezvousError, UserError

_PROCESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_LAUNCHERS = "start with deepspeed, torchrun, srun or plain python"


@dataclass(frozen=True)
class Process:
    """This process of the run: its rank, the world size, and its rank on its own host."""

    rank: int
    size: int
    local_rank: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or self.local_rank < 0:
            raise UserError(
                f"environment: rank {self.rank} of {self.size} with local rank {self.local_rank}; "
                f"ranks count from 0 and stay below the number of processes; {_LAUNCHERS}"
            )


def this_process() -> Process | None:
    """Reads the variables of torchrun or the deepspeed launcher, else those of srun; None for a process on its own.

    A batch script and an interactive shell of one task are processes on their own.

    Raises:
        UserError: the variables are incomplete or inconsistent.
    """
    if any(name in os.environ for name in _PROCESS):
        _require((*_PROCESS, *_MEETING_POINT))
        return Process(*(_integer(name) for name in _PROCESS))
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    _require((*_SRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"))
    return Process(*(_integer(name) for name in _SRUN))


def find_meeting_point() -> tuple[str, int]:
    """Returns the host and port of the rendezvous; rank 0 is on that host.

    They are MASTER_ADDR and MASTER_PORT if set. Under bare srun: the first host of the step, and a port derived from
    job and step, so that steps on one host use different ports; below 30000, the range that systems do not assign.

    Raises:
        UserError: the port is invalid, or SLURM cannot name the host.
    """
    host = os.environ.get("MASTER_ADDR") or hosts_of_step()[0]
    if "MASTER_PORT" not in os.environ:
        return host, 10_000 + (10 * _integer("SLURM_JOB_ID") + int(os.environ.get("SLURM_STEP_ID", 0))) % 20_000
    port = _integer("MASTER_PORT")
    if not 0 < port < 2**16:
        raise UserError(f"environment: MASTER_PORT is {port}; a port is a number from 1 to 65535")
    return host, port


def local_size() -> int:
    """Returns the number of the run's processes on this host."""
    by_launcher = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    if by_launcher or "RANK" in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return int(by_launcher or 1)
    per_host = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"])  # such as 2(x3),1
    return [int(tasks) for tasks, hosts in per_host for _ in range(int(hosts or 1))][int(os.environ["SLURM_NODEID"])]


def hosts_of_step() -> list[str]:
    """Returns the hosts of a SLURM step, in the order of their tasks.

    Raises:
        UserError: SLURM cannot name them.
    """
    nodes = os.environ["SLURM_STEP_NODELIST"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
        )
        if hosts := listed.stdout.split():
            return hosts
    raise UserError(
        f"environment: `scontrol show hostnames {nodes}` names no host; set MASTER_ADDR to the host of rank 0"
    )


def prints(error: UserError | None = None) -> bool:
    """True if this process prints: rank 0, or one per host for errors that rank 0 may not be able to report."""
    try:
        process = this_process()
    except UserError:  # the rank is unknown
        return True
    if process is None:
        return True
    return process.rank == 0 or (isinstance(error, RendezvousError) and process.local_rank == 0)


def _require(names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        present = [name for name in names if name in os.environ]
        raise UserError(f"environment: {', '.join(present)} set but not {', '.join(missing)}; {_LAUNCHERS}")


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"environment: {name} is {os.environ[name]!r}, not a whole number; {_LAUNCHERS}") from None
