"""Jobs on a SLURM cluster of two nodes: interrupted or not, they have the same result as one process."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from codyra_llm import run
from codyra_llm.config import parse_command_line
from codyra_llm.config.grid import grid_runs, read_grid, write_runs
from tests.comparison import assert_same_result
from tests.conftest import REPOSITORY
from tests.slurm.cluster import down, obstacle, up

PATIENCE = 600
"""Seconds after which a job that does not do what it should fails its test."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        number: job id.
        output: file with what it printed.
        environment: the cluster's environment.
    """

    number: str
    output: Path
    environment: dict[str, str]

    def field(self, name: str) -> str:
        """Returns a field of `scontrol show job`."""
        return dict(pair.split("=", 1) for pair in self.slurm("scontrol", "show", "job").split() if "=" in pair)[name]

    def slurm(self, *command: str) -> str:
        """Runs a SLURM command on this job; returns its output."""
        return subprocess.run(
            [*command, self.number], env=self.environment, check=True, capture_output=True, text=True
        ).stdout

    def wait(self) -> str:
        """Waits until the job has ended for good; returns its state.

        Shortens the waiting time of a requeued job, but not to zero: a job that starts within the second in which it
        was requeued fails ("Job credential revoked").
        """
        waited = 0
        for _ in range(PATIENCE * 2):
            state = self.field("JobState")
            if state in ENDED:
                return state
            waited = waited + 1 if state == "PENDING" and self.field("Restarts") != "0" else 0
            if waited >= 10:
                with contextlib.suppress(subprocess.CalledProcessError):  # requeueing may not be complete
                    self.slurm("scontrol", "update", "StartTime=now", "JobId")
            time.sleep(0.5)
        raise TimeoutError(f"job {self.number} is {state}:\n{self.output.read_text()[-4000:]}")


def wait_for_step(job: Job, run_folder: Path, task: int, step: int) -> None:
    """Waits until a run has a checkpoint in the middle of a task, after at least `step` steps of it."""
    for _ in range(PATIENCE * 20):
        with contextlib.suppress(FileNotFoundError):  # a newer checkpoint may have replaced it
            for progress in run_folder.glob("checkpoints/[0-9]*/progress.json"):
                if not progress.parent.name.isdigit():  # it is being written
                    continue
                position = json.loads(progress.read_text())
                if (position["task"], position["phase"]) == (task, "train") and position["step"] >= step:
                    return
        time.sleep(0.05)
    raise TimeoutError(f"task {task} has not come to step {step}:\n{job.output.read_text()[-4000:]}")


def sbatch(script: str, folder: Path, arguments: list[str], environment: dict[str, str]) -> Job:
    """Submits a script of scripts/slurm on two nodes; its output goes to `folder`."""
    output = folder / "job.out"
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={output}", f"scripts/slurm/{script}.sbatch"]
    submitted = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
    )
    return Job(submitted.stdout.strip(), output, environment)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a running cluster; skips the tests where none can be started."""
    problem = obstacle()
    if problem:
        pytest.skip(f"no SLURM cluster: {problem}")
    folder = tmp_path_factory.mktemp("cluster")
    try:
        yield {**up(folder), "OMP_NUM_THREADS": "1", "VENV": sys.prefix, "PYTHONPATH": str(REPOSITORY)}
    finally:
        down(folder)


@pytest.fixture(scope="module")
def arguments(tiny_folder: Path) -> list[str]:
    """Command line of a run of two tasks that writes a checkpoint after each step."""
    settings = {
        "config": "configs/smoke.yaml",
        "model.name_or_path": tiny_folder,
        "adapter.rank": 4,
        "data.max_train_examples": 64,
        "data.max_prompt_length": 64,
        "train.num_train_epochs": 2,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(parse_command_line([*arguments, "--output_dir", str(folder)], ""))
    return folder


@pytest.fixture
def submit(cluster: dict[str, str], arguments: list[str], tmp_path: Path) -> Callable[..., Job]:
    """Function that submits train_trace.sbatch on two nodes; the run folder is tmp_path / "run"."""

    def of_run(*more: str) -> Job:
        return sbatch("train_trace", tmp_path, [*arguments, "--output_dir", str(tmp_path / "run"), *more], cluster)

    return of_run


def test_a_job_on_two_nodes_gives_what_one_process_gives(
    submit: Callable[..., Job], expected: Path, tmp_path: Path
) -> None:
    job = submit("--deepspeed", "ds_configs/zero2.json")
    assert job.wait() == "COMPLETED", job.output.read_text()[-4000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["world_size"] == 2
    assert_same_result(tmp_path / "run", expected)


def requeue(job: Job, run_folder: Path) -> None:
    job.slurm("scontrol", "requeue")


def signal_batch_script(job: Job, run_folder: Path) -> None:
    job.slurm("scancel", "--signal=USR1", "--batch")


def signal_every_process(job: Job, run_folder: Path) -> None:
    job.slurm("scancel", "--signal=USR1", "--full")


def kill_rank_1(job: Job, run_folder: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have ended
            of_this_run = str(run_folder).encode() in (process / "cmdline").read_bytes().split(b"\0")
            if of_this_run and b"RANK=1" in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise AssertionError("no process of rank 1")


@pytest.mark.parametrize(
    ("interrupt", "task"), [(requeue, 1), (signal_batch_script, 2), (signal_every_process, 1), (kill_rank_1, 2)]
)
def test_a_job_interrupted_in_the_middle_of_a_task_ends_with_the_same_result(
    submit: Callable[..., Job], expected: Path, tmp_path: Path, interrupt: Callable[[Job, Path], None], task: int
) -> None:
    job = submit("--train.checkpoint_every", "1")
    wait_for_step(job, tmp_path / "run", task, 3)
    interrupt(job, tmp_path / "run")
    assert job.wait() == "COMPLETED", job.output.read_text()[-4000:]
    assert job.field("Restarts") == "1"
    assert f"resuming with: train task {task} " in (tmp_path / "run" / "train.log").read_text()
    assert_same_result(tmp_path / "run", expected)


def test_scores_of_a_saved_model(cluster: dict[str, str], arguments: list[str], expected: Path, tmp_path: Path) -> None:
    saved = ["--model.name_or_path", str(expected / "model"), "--output_dir", str(tmp_path / "scores")]
    job = sbatch("evaluate", tmp_path, [*arguments, *saved], cluster)
    assert job.wait() == "COMPLETED", job.output.read_text()[-4000:]
    scores, run_results = (json.loads((path / "results.json").read_text()) for path in (tmp_path / "scores", expected))
    assert scores["world_size"] == 2
    assert list(scores["scores"]["lenient"].values()) == run_results["matrix"][-1]


def test_a_cancelled_job_stays_cancelled(submit: Callable[..., Job], tmp_path: Path) -> None:
    job = submit("--train.checkpoint_every", "1")
    wait_for_step(job, tmp_path / "run", 1, 1)
    job.slurm("scancel")
    assert job.wait() == "CANCELLED"
    assert job.field("Restarts") == "0"


def test_bare_srun_gives_what_one_process_gives(
    cluster: dict[str, str], arguments: list[str], expected: Path, tmp_path: Path
) -> None:
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "scripts/train_trace.py"]
    done = subprocess.run(
        [*command, *arguments, "--output_dir", str(tmp_path / "run")],
        cwd=REPOSITORY,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["world_size"] == 2
    assert_same_result(tmp_path / "run", expected)


def test_bad_input_fails_at_once_with_its_one_line(submit: Callable[..., Job]) -> None:
    job = submit("--data_dir", "nowhere")
    assert job.wait() == "FAILED"
    assert job.field("Restarts") == "0"
    lines = [line for line in job.output.read_text().splitlines() if line.startswith("error: ")]
    assert lines == ["error: nowhere: no such data folder; data_dir holds <task>/train.json and <task>/test.json"]


def test_a_node_that_does_not_come_is_named(cluster: dict[str, str], arguments: list[str], tmp_path: Path) -> None:
    programs = tmp_path / "environment" / "bin"  # its python sleeps on n2
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"export PATH={programs}:{sys.prefix}/bin:$PATH\n")
    (programs / "python").write_text(f'[ "$SLURM_NODEID" = 1 ] && sleep {PATIENCE}\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    environment = {**cluster, "VENV": str(programs.parent), "RENDEZVOUS_SECONDS": "20"}
    job = sbatch("train_trace", tmp_path, [*arguments, "--output_dir", str(tmp_path / "run")], environment)
    assert job.wait() == "FAILED"
    assert "node n2 of 2 did not come within 20 s; look for what their hosts say" in job.output.read_text()


def test_an_index_of_the_array_is_a_run_of_the_comparison(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts" / "slurm"
    scripts.mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts" / "slurm" / "compare_array.sbatch", scripts)
    (scripts / "train_trace.sbatch").write_text('echo "$@"')
    base, grid = read_grid("compare_nano", {"output_dir": "runs/x"}, {"methods": ["lora", "codyra"], "seeds": [0, 1]})
    _, count = write_runs(dataclasses.replace(base, output_dir=str(tmp_path / "runs x")), grid)

    def task(index: int) -> subprocess.CompletedProcess[str]:
        array = {"RUNS": str(tmp_path / "runs x" / "runs"), "SLURM_ARRAY_TASK_ID": str(index)}
        command = ["bash", "scripts/slurm/compare_array.sbatch", "--data.version", "a b"]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, **array}, capture_output=True, text=True)

    folders = [str(tmp_path / "runs x" / each.folder) for each in grid_runs(grid)]
    assert [task(index).stdout for index in range(1, count + 1)] == [
        f"--config {tmp_path}/runs x/runs/{index}.yaml --output_dir {folder} --data.version a b\n"
        for index, folder in enumerate(folders, 1)
    ]
    assert task(count + 1).returncode == 2
    assert f"submit with --array=1-{count}\n" in task(count + 1).stderr
