"""Start-up under `deepspeed`, `torchrun` or plain `python`: one process group, the same code everywhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from codyra_llm.errors import UserError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start() -> World:
    """Joins the process group that the launcher describes; without a launcher, makes one of a single process.

    Raises:
        UserError: the launcher's variables are there only in part.
    """
    if not dist.is_initialized():
        alone = _is_alone()
        get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", 0)))  # else every rank would take the first GPU
        if get_accelerator().device_name() == "cpu":
            _settle_on_cpu()
        if alone:
            backend = get_accelerator().communication_backend_name()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        # the accelerator's backend: gloo on CPU, nccl on CUDA
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    device = torch.device(get_accelerator().current_device_name())
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def local_rank_in_environment() -> Iterator[None]:
    """Within, LOCAL_RANK is set, which DeepSpeed insists on even in a process that no launcher started."""
    if "LOCAL_RANK" in os.environ:
        yield
        return
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]  # a child process must not take it for a launcher's


def share(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def local_size() -> int:
    """Number of the run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def _is_alone() -> bool:
    """Whether no launcher started this process."""
    present = [name for name in LAUNCHER_VARIABLES if name in os.environ]
    if present and len(present) < len(LAUNCHER_VARIABLES):
        missing = ", ".join(name for name in LAUNCHER_VARIABLES if name not in os.environ)
        raise UserError(
            f"environment: {', '.join(present)} set but not {missing}; start with deepspeed, torchrun or plain python"
        )
    return not present


def _settle_on_cpu() -> None:
    # DeepSpeed would compile its shared-memory collectives at first use: over a minute, for what gloo does as well.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    if local_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size()))
