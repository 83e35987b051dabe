"""Start-up under `deepspeed`, `torchrun` or plain `python`: one process group, the same code everywhere."""

import os
import socket
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
        _complete_environment()
        if get_accelerator().device_name() == "cpu":
            _settle_on_cpu()
        # the accelerator's backend: gloo on CPU, nccl on CUDA
        deepspeed.init_distributed(verbose=False)
    device = torch.device(get_accelerator().current_device_name())
    return World(dist.get_rank(), dist.get_world_size(), device)


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


def _complete_environment() -> None:
    present = [name for name in LAUNCHER_VARIABLES if name in os.environ]
    if present and len(present) < len(LAUNCHER_VARIABLES):
        missing = ", ".join(name for name in LAUNCHER_VARIABLES if name not in os.environ)
        raise UserError(
            f"environment: {', '.join(present)} set but not {missing}; start with deepspeed, torchrun or plain python"
        )
    if not present:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(zip(LAUNCHER_VARIABLES, ("0", "1", "0", "127.0.0.1", port), strict=True))


def _settle_on_cpu() -> None:
    # DeepSpeed would compile its shared-memory collectives at first use: over a minute, for what gloo does as well.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
