"""Start-up under `deepspeed`, `torchrun`, `srun` or plain `python`, which all give one process group."""

import atexit
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors import SafetensorError
from torch.distributed import distributed_c10d

from codyra_llm.distributed.environment import Process, local_size, this_process
from codyra_llm.distributed.heartbeat import Heartbeat
from codyra_llm.distributed.rendezvous import meet
from codyra_llm.errors import UserError
from codyra_llm.files import full_disk
from codyra_llm.text import shown

COLLECTIVE_SECONDS = 1800.0  # DeepSpeed's own limit


@dataclass(frozen=True)
class Ranks:
    """This process of the run: its rank, the world size, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True if this process writes files and prints."""
        return self.rank == 0


_heartbeat: Heartbeat | None = None


def start(rendezvous_seconds: float = 300, collective_seconds: float = COLLECTIVE_SECONDS) -> Ranks:
    """Joins the process group that the launcher describes; without a launcher, creates one with a single process.

    Args:
        rendezvous_seconds: how long to wait for the other processes.
        collective_seconds: time limit of a collective operation, after which the others give up on a rank that hangs.

    Raises:
        UserError: the launcher's variables are incomplete or inconsistent, or a process did not arrive.
    """
    global _heartbeat
    if not dist.is_initialized():
        process = this_process()
        _take_device(process)
        limit = timedelta(seconds=collective_seconds)
        # also the limit of the groups that DeepSpeed creates later without one
        distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit
        # the accelerator's backend is gloo on CPU, nccl on CUDA
        options = {"backend": get_accelerator().communication_backend_name(), "timeout": limit}
        if process is None or process.size == 1:  # a single process needs no port, which another run may use
            dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1, **options)
        else:
            store = meet(process, rendezvous_seconds)
            store.set_timeout(limit)  # it was the remaining time of the rendezvous
            _heartbeat = Heartbeat(store, process.rank, process.size)
            dist.init_process_group(store=store, rank=process.rank, world_size=process.size, **options)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # uses the group created here
    device = torch.device(get_accelerator().current_device_name())
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def lost_ranks(error: RuntimeError) -> str | None:
    """Returns one line that names the ranks that a collective operation waited for in vain; None for other errors."""
    if not _heartbeat or not (isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|Connection", str(error))):
        return None
    lost = _heartbeat.lost()
    who = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}" if lost else "another rank"
    return (
        f"rank {dist.get_rank()} lost {who} of {_heartbeat.size}, which ended or stood still for collective_seconds; "
        "look for what it printed last, then give the same command again, which resumes from what was kept"
    )


def leave() -> None:
    """Waits until all ranks are done: rank 0 serves the store of the others and must not end first."""
    if dist.is_initialized():
        dist.barrier()
        atexit.register(_end_process_group)  # not now: DeepSpeed could not be started again in this process


def _end_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def local_rank_in_environment() -> Iterator[None]:
    """A context in which LOCAL_RANK is set: DeepSpeed requires it, but neither srun nor plain python sets it."""
    if "LOCAL_RANK" in os.environ:
        yield
        return
    os.environ["LOCAL_RANK"] = str(get_accelerator().current_device())
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]  # a child process would take it for a launcher's


def broadcast(value: Any) -> Any:
    """Returns rank 0's value, on every rank."""
    if dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all ranks, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_same(ranks: Ranks, values: Mapping[str, Any]) -> None:
    """Raises UserError, on every rank, if a rank has another value than rank 0.

    Args:
        ranks: the ranks.
        values: this rank's settings, data and weights, by the same names on every rank; None is not compared.
    """
    of_ranks = all_gather(dict(values))
    for name, value in of_ranks[0].items():
        others = [rank for rank, of_rank in enumerate(of_ranks) if of_rank.get(name) not in (value, None)]
        if value is not None and others:
            numbers = ", ".join(map(str, others))
            raise UserError(
                f"rank{'s' * (len(others) > 1)} {numbers} of {ranks.size} and rank 0 have different {name} "
                f"({shown(of_ranks[others[0]][name])} and {shown(value)}); give every host the same files and arguments"
            )


def any_rank(mine: bool, device: torch.device) -> bool:
    """Returns whether `mine` is true on any rank, the same on all; `device` is this rank's."""
    flag = torch.tensor(int(mine), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def on_rank_0(ranks: Ranks, action: Callable[[], Any]) -> Any:
    """Returns the result of `action` on rank 0, None on the others; if it fails, it fails on every rank.

    Raises:
        UserError: the action raised one, or a file could not be read or written.
    """
    result, problem, failure = None, None, None
    if ranks.is_main:
        try:
            result = action()
        except UserError as error:
            problem = str(error)
        except (OSError, SafetensorError) as error:
            problem = f"{error}{_kept(error)}"
        except Exception as error:  # a bug: the others must not wait for rank 0
            problem, failure = f"rank 0: {type(error).__name__}: {error}", error
    problem = broadcast(problem)
    if failure:
        raise failure
    if problem:
        raise UserError(problem)
    return result


def _kept(error: OSError | SafetensorError) -> str:
    """Returns a remark on errors of the disk: earlier files are complete, since each is written apart and renamed."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS) or full_disk(error):
        return "; what was kept until now is whole, and the same command resumes from it"
    return ""


def _take_device(process: Process | None) -> None:
    if get_accelerator().device_name() == "cpu":
        _settle_on_cpu()
        return
    device, devices = process.local_rank if process else 0, get_accelerator().device_count()
    if devices == 1 and "LOCAL_RANK" not in os.environ:
        device = 0  # with srun --gpus-per-task, each task sees its own GPU only
    if device >= devices:
        raise UserError(f"environment: local rank {device} needs a device of its own, this process sees {devices}")
    get_accelerator().set_device(device)  # otherwise every rank would use the first


def _settle_on_cpu() -> None:
    # DeepSpeed would compile its shared-memory collectives at first use, which takes over a minute; gloo does without
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    if local_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size()))
