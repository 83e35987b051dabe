"""A SLURM cluster of two nodes, n1 and n2, on this machine; needs root and Debian's packages.

    python tests/slurm/cluster.py up FOLDER       # then: export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm/cluster.py down FOLDER

All files that it writes are in FOLDER, except for one line of /etc/hosts that gives the nodes' names an address, as the
name service of a real cluster does; `down` removes that line.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("n1", "n2")
HOSTS = Path("/etc/hosts")
HOSTS_LINE = f"127.0.0.1 {' '.join(NODES)} # a cluster of two nodes on this machine\n"
SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# both nodes are this machine; each is configured with its own CPUs, however many the machine has
CONFIGURATION = """\
ClusterName=two-nodes
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
SlurmdParameters=config_overrides
KillWait=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port} CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Returns the reason why no cluster can be started here; None if it can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH_PATH)]
    if missing:
        return f"{', '.join(missing)} not found; apt-get install {PACKAGES}"
    return None if os.geteuid() == 0 else "a SLURM cluster of two nodes on one machine needs root"


def up(folder: Path) -> dict[str, str]:
    """Starts the daemons; returns once both nodes are idle.

    Returns:
        The environment in which sbatch, srun and scontrol talk to this cluster.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    controller_port, n1_port, n2_port = _free_ports(3)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller_port=controller_port,
            n1_port=n1_port,
            n2_port=n2_port,
        )
    )
    if HOSTS_LINE not in HOSTS.read_text():
        with HOSTS.open("a") as stream:
            stream.write(HOSTS_LINE)
    environment = _environment(folder)
    files = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    _run(["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *files], environment)
    _run(["slurmctld"], environment)
    for node in NODES:
        _run(["slurmd", "-N", node], environment)
    _wait_until_idle(folder, environment)
    return environment


def down(folder: Path) -> None:
    """Ends all jobs and daemons of the cluster in a folder, and removes the nodes' names from /etc/hosts."""
    for options in (["--signal=KILL", "--full", "--state=RUNNING"], ["--user=root"]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", *options], env=_environment(folder), check=False, timeout=30)
    for program, pid_file in [*(("slurmd", f"slurmd-{node}") for node in NODES), ("slurmctld",) * 2, ("munged",) * 2]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            process = int((folder / f"{pid_file}.pid").read_text())
            if Path(f"/proc/{process}/comm").read_text().strip() == program:  # the id may be another's by now
                os.kill(process, signal.SIGTERM)
                _wait_until_gone(process)
    HOSTS.write_text(HOSTS.read_text().replace(HOSTS_LINE, ""))


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": SEARCH_PATH, "SLURM_CONF": str(folder / "slurm.conf")}


def _run(command: list[str], environment: dict[str, str]) -> None:
    # its output is not captured: a daemon could hold the pipe open for as long as it lives
    status = subprocess.run(command, env=environment, check=False, timeout=60).returncode
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")


def _wait_until_idle(folder: Path, environment: dict[str, str], seconds: int = 60) -> None:
    for _ in range(seconds * 2):
        states = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %t"], env=environment, capture_output=True, text=True
        )
        if sorted(states.stdout.splitlines()) == [f"{node} idle" for node in NODES]:
            return
        time.sleep(0.5)
    logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
    raise RuntimeError(f"nodes not idle after {seconds} s: {states.stdout}{states.stderr}\n{logs}")


def _wait_until_gone(process: int, seconds: int = 20) -> None:
    for _ in range(seconds * 10):
        os.kill(process, 0)  # raises ProcessLookupError once it is gone
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for free in found:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in found]


if __name__ == "__main__":
    action, where = sys.argv[1:]
    if problem := obstacle():
        sys.exit(f"error: {problem}")
    {"up": up, "down": down}[action](Path(where).resolve())
