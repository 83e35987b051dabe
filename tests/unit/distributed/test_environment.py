"""Rank, world size and rendezvous address of a process, read from the environment."""

import sys
from collections.abc import Callable, Mapping

import pytest

from codyra_llm.distributed.environment import Process, find_meeting_point, local_size, prints, this_process
from codyra_llm.errors import RendezvousError, UserError

LAUNCHER = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu7", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[7-8]",
    "SLURM_JOB_ID": "120",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
    "SLURM_NODEID": "2",
}
Setter = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Setter:
    """Sets the given variables and removes all other relevant ones; None removes a variable."""

    def set_all(*groups: Mapping[str, str | None], **single: str | None) -> None:
        for name in (*LAUNCHER, *SRUN, "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for group in (*groups, single):
            for name, value in group.items():
                if value is None:
                    monkeypatch.delenv(name)
                else:
                    monkeypatch.setenv(name, value)

    return set_all


def test_each_launcher(environment: Setter) -> None:
    environment(LAUNCHER)
    assert this_process() == Process(rank=3, size=4, local_rank=1)
    assert find_meeting_point() == ("gpu7", 29500)
    environment(SRUN, MASTER_ADDR="gpu7")
    assert this_process() == Process(rank=2, size=8, local_rank=0)
    environment(SRUN, LAUNCHER)  # srun torchrun
    assert this_process() == Process(rank=3, size=4, local_rank=1)


def test_a_process_on_its_own(environment: Setter) -> None:
    environment()
    assert this_process() is None
    environment(SLURM_JOB_ID="120", SLURM_PROCID="0", SLURM_LOCALID="0")  # a batch script
    assert this_process() is None
    environment(SRUN, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")  # srun --pty
    assert this_process() is None
    environment(MASTER_ADDR="gpu7", MASTER_PORT="29500")  # set for later job steps
    assert this_process() is None


def test_processes_of_this_host(environment: Setter) -> None:
    environment()
    assert local_size() == 1
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # torchrun, deepspeed
        environment(SRUN, LAUNCHER, **{name: "4"})
        assert local_size() == 4
    environment(SRUN)
    assert local_size() == 2
    environment(SRUN, SLURM_NODEID="1")
    assert local_size() == 3


def test_the_port_of_a_step_is_its_own(environment: Setter) -> None:
    ports = []
    for job, step in (("120", "0"), ("120", "1"), ("121", "0"), ("4000000000", "3")):
        environment(SRUN, MASTER_ADDR="gpu7", SLURM_JOB_ID=job, SLURM_STEP_ID=step)
        ports.append(find_meeting_point()[1])
    assert len(set(ports)) == 4
    assert all(10_000 <= port < 30_000 for port in ports)
    environment(SRUN, MASTER_ADDR="gpu7", MASTER_PORT="29500")
    assert find_meeting_point() == ("gpu7", 29500)


@pytest.mark.parametrize(
    ("groups", "single", "message"),
    [
        ([], {"WORLD_SIZE": "2"}, "WORLD_SIZE set but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ([LAUNCHER], {"MASTER_PORT": None}, "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR set but not MASTER_PORT"),
        ([SRUN], {"RANK": "0"}, "RANK set but not WORLD_SIZE"),
        ([SRUN], {"SLURM_LOCALID": None}, "set but not SLURM_LOCALID"),
        ([SRUN], {"SLURM_PROCID": "first"}, "SLURM_PROCID is 'first', not a whole number"),
        ([SRUN], {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many', not a whole number"),
        ([LAUNCHER], {"RANK": ""}, "RANK is '', not a whole number"),
        ([LAUNCHER], {"RANK": "4"}, "rank 4 of 4"),
        ([LAUNCHER], {"RANK": "-1"}, "rank -1 of 4"),
        ([LAUNCHER], {"WORLD_SIZE": "0", "RANK": "0"}, "rank 0 of 0"),
        ([LAUNCHER], {"LOCAL_RANK": "-1"}, "local rank -1"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(
    environment: Setter, groups: list[dict[str, str]], single: dict[str, str | None], message: str
) -> None:
    environment(*groups, **single)
    with pytest.raises(UserError, match="environment: ") as error:
        this_process()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert prints(), "no process knows its rank, so none may be silent"


def test_a_meeting_point_that_is_none_is_named(environment: Setter, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(LAUNCHER, MASTER_PORT="70000")
    with pytest.raises(UserError, match="MASTER_PORT is 70000; a port is a number from 1 to 65535"):
        find_meeting_point()
    environment(SRUN)
    monkeypatch.setenv("PATH", sys.prefix)  # a folder without scontrol
    with pytest.raises(UserError, match=r"scontrol show hostnames gpu\[7-8\]` names no host; set MASTER_ADDR"):
        find_meeting_point()


def test_one_process_prints(environment: Setter) -> None:
    environment()
    assert prints()
    environment(SRUN)
    assert not prints()
    assert prints(RendezvousError("rank 0 may not be there")), "the first on its host"
    environment(SRUN, SLURM_PROCID="0")
    assert prints()
    environment(LAUNCHER)
    assert not prints(RendezvousError("another on this host prints"))
