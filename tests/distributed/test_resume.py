"""A run that is killed at any point and started again ends with the same result as an uninterrupted one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.distributed.forked import run_forked

# where a run of two tasks is killed: in each kind of work, early and late, and while it writes files
KILLS = [
    "round of answers:1",
    "round of answers:3",
    "training step:1",
    "training step:5",
    "training step:9",
    "checkpoint:1",
    "checkpoint:4",
    "folder:2",
    "folder:9",
    "file:6",
    "ledger entry:1",
    "ledger entry:2",
    "merged weight:3",
    "merged weight:20",
    "saved model:1",
]


def run_sessions(*sessions: dict[str, Any]) -> list[list[int]]:
    return run_forked("tests.distributed.preempted", list(sessions))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout, whose random numbers must not depend on interruptions either."""
    folder = tmp_path_factory.mktemp("models") / "tiny-with-dropout"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return folder


def config_of(model: Path, output: Path, **overrides: object) -> dict[str, Any]:
    return {
        "model.name_or_path": str(model),
        "output_dir": str(output),
        "order": ["FOMC", "NumGLUE-cm"],
        "adapter.rank": 4,
        "train.global_batch_size": 8,
        "train.per_device_train_batch_size": 4,
        "train.num_train_epochs": 1,
        "train.learning_rate": 0.01,
        "train.checkpoint_every": 2,
        "data.max_train_examples": 40,
        "data.max_test_examples": 6,
        "evaluate.max_new_tokens": 4,
        "evaluate.batch_size": 4,
        **overrides,
    }


def assert_same_run(folder: Path, expected: Path) -> None:
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in (folder, expected))
    for key in ("losses", "matrices", "answer_nll", "ranks", "metrics"):
        assert ours[key] == theirs[key], key
    assert [p["phase"] for p in ours["phases"]] == [p["phase"] for p in theirs["phases"]]
    assert [p["tokens"] for p in ours["phases"]] == [p["tokens"] for p in theirs["phases"]]
    names = ["model/model.safetensors", "ranks.csv", "matrix.csv"]
    names += [f"predictions/{path.name}" for path in (expected / "predictions").iterdir()]
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())
    assert not list(folder.rglob("*.tmp")) + list(folder.rglob("*.partial"))


def uninterrupted(model: Path, folder: Path) -> tuple[Path, list[str]]:
    """Runs without interruption; returns the run folder and the points that the run passed, in order.

    Another run before it fills the caches, since caches are also filled for the interrupted runs.
    """
    before = {"config": config_of(model, folder / "before")}
    watched = {"config": config_of(model, folder / "run"), "watch": str(folder / "passed")}
    assert run_sessions(before, watched) == [[0], [0]]
    return folder / "run", (folder / "passed").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An uninterrupted run and the points that it passed."""
    return uninterrupted(model, tmp_path_factory.mktemp("whole"))


def test_killed_at_every_kind_of_point(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, _ = whole
    configs = [config_of(model, tmp_path / point.replace(" ", "-")) for point in KILLS]
    sessions = []
    for config, point in zip(configs, KILLS, strict=True):
        sessions += [{"config": config, "strike": [0, point, "SIGKILL"]}, {"config": config}]
    statuses = run_sessions(*sessions)
    for point, config, killed, finished in zip(KILLS, configs, statuses[::2], statuses[1::2], strict=True):
        assert (killed, finished) == ([-9], [0]), point
        assert_same_run(Path(config["output_dir"]), expected)


def test_killed_again_and_again(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, _ = whole
    config = config_of(model, tmp_path / "run")
    kills = ["round of answers:2", "training step:5", "merged weight:4", "training step:5", "round of answers:2"]
    struck = [{"config": config, "strike": [0, point, "SIGKILL"]} for point in kills]
    assert run_sessions(*struck, {"config": config}) == [*[[-9]] * len(kills), [0]]
    assert_same_run(tmp_path / "run", expected)


def test_answers_that_were_given_are_not_asked_for_again(
    whole: tuple[Path, list[str]], model: Path, tmp_path: Path
) -> None:
    expected, passed = whole
    config = config_of(model, tmp_path / "run")
    struck = {"config": config, "strike": [0, "round of answers:2", "SIGKILL"]}
    assert run_sessions(struck, {"config": config, "watch": str(tmp_path / "passed")}) == [[-9], [0]]
    again = (tmp_path / "passed").read_text().splitlines().count("round of answers")
    assert again == passed.count("round of answers") - 1
    assert_same_run(tmp_path / "run", expected)


STOPS = [
    # point at which the stop is requested, and how; start of the file `stopped`
    ("training step", "SIGTERM", "in task 1 (FOMC), after step "),
    ("training step", "SIGUSR1", "in task 1 (FOMC), after step "),
    ("training step", "stop file", "in task 1 (FOMC), after step "),
    ("round of answers", "SIGTERM", "while scoring 0-base, after "),
    ("merged weight", "stop file", "while merging task 1 (FOMC)"),
]


def test_stopped_when_asked(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, _ = whole
    configs = [config_of(model, tmp_path / f"{point}-{how}".replace(" ", "-")) for point, how, _ in STOPS]
    struck = [
        {"config": config, "strike": [0, f"{point}:2", how], "watch": config["output_dir"] + ".passed"}
        for config, (point, how, _) in zip(configs, STOPS, strict=True)
    ]
    assert run_sessions(*struck) == [[75]] * len(STOPS)
    for config, (point, _, where) in zip(configs, STOPS, strict=True):
        folder = Path(config["output_dir"])
        assert Path(f"{folder}.passed").read_text().splitlines().count(point) == 2, "it ends with what it was at"
        assert (folder / "stopped").read_text().startswith(where)
        assert not (folder / "stop").exists()
    assert run_sessions(*({"config": config} for config in configs)) == [[0]] * len(STOPS)
    for config in configs:
        assert_same_run(Path(config["output_dir"]), expected)


def test_one_rank_is_asked_and_all_stop(tiny_folder: Path, tmp_path: Path) -> None:
    configs = [config_of(tiny_folder, tmp_path / str(at), deepspeed="ds_configs/zero2.json") for at in range(3)]
    struck = [
        {"config": config, "ranks": 2, "strike": [1, point, "SIGTERM"]}
        for config, point in zip(configs, ("training step:5", "stop check:2", "merged weight:9"), strict=True)
    ]
    assert run_sessions(*struck) == [[75, 75]] * 3
    assert len({(Path(config["output_dir"]) / "stopped").read_text() for config in configs}) == 3


WAYS: dict[str, dict[str, Any]] = {
    "zero2-2ranks": {"ranks": 2, "deepspeed": "ds_configs/zero2.json"},
    "zero3-2ranks": {"ranks": 2, "deepspeed": "ds_configs/zero3.json"},
    "zero0-1rank": {"ranks": 1, "deepspeed": None},
    "zero3-offload-2ranks": {"ranks": 2, "deepspeed": "ds_configs/zero3-offload.json"},
    "zero2-offload-1rank": {"ranks": 1, "deepspeed": "ds_configs/zero2-offload.json"},
    "zero1-1rank": {"ranks": 1, "deepspeed": "ds_configs/zero1.json", "train.per_device_train_batch_size": 2},
}


@pytest.fixture(scope="module")
def without_dropout(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An uninterrupted run of one rank whose result does not depend on the number of ranks."""
    return uninterrupted(tiny_folder, tmp_path_factory.mktemp("without-dropout"))


CHANGES = [
    ("zero2-2ranks", "zero0-1rank"),
    ("zero0-1rank", "zero2-2ranks"),
    ("zero1-1rank", "zero3-2ranks"),
    ("zero3-2ranks", "zero1-1rank"),
    ("zero3-2ranks", "zero2-2ranks"),
    ("zero3-offload-2ranks", "zero2-offload-1rank"),
]


def test_resumed_on_other_hardware(without_dropout: tuple[Path, list[str]], tiny_folder: Path, tmp_path: Path) -> None:
    expected, passed = without_dropout
    late = f"training step:{passed.count('training step') * 3 // 4}"
    sessions = []
    for before, after in CHANGES:
        for way, strike in ((before, [0, late, "SIGKILL"]), (after, None)):
            settings = dict(WAYS[way])
            ranks = settings.pop("ranks")
            config = config_of(tiny_folder, tmp_path / f"{before}-{after}", **settings)
            sessions.append({"config": config, "ranks": ranks, "strike": strike})
    statuses = run_sessions(*sessions)
    theirs = json.loads((expected / "results.json").read_text())
    others = load_file(expected / "model" / "model.safetensors")
    for number, (before, after) in enumerate(CHANGES):
        folder = tmp_path / f"{before}-{after}"
        assert statuses[2 * number][0] == -9
        assert not any(statuses[2 * number + 1])
        ours = json.loads((folder / "results.json").read_text())
        assert len(ours["sessions"]) == 1, "the second session resumed what the first had done"
        assert ours["world_size"] == WAYS[after]["ranks"]
        losses = [[x for task in run["losses"] for x in task["loss"]] for run in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        weights = load_file(folder / "model" / "model.safetensors")
        difference = max(float((weights[name] - weight).abs().max()) for name, weight in others.items())
        print(f"{before} -> {after}: losses {max(abs(x - y) for x, y in zip(*losses, strict=True)):.1e}, "
              f"weights {difference:.1e}")  # fmt: skip
        assert difference < 1e-5
        assert ours["matrix"] == theirs["matrix"]


@pytest.mark.parametrize("way", ["zero2-2ranks", "zero3-2ranks"])
def test_two_ranks_killed_and_resumed_to_the_bit(tiny_folder: Path, tmp_path: Path, way: str) -> None:
    settings = dict(WAYS[way])
    ranks = settings.pop("ranks")
    expected, killed = (config_of(tiny_folder, tmp_path / name, **settings) for name in ("whole", "killed"))
    sessions = [
        {"config": expected, "ranks": ranks, "strike": None},
        {"config": killed, "ranks": ranks, "strike": [1, "training step:6", "SIGKILL"]},
        {"config": killed, "ranks": ranks, "strike": [0, "merged weight:5", "SIGKILL"]},
        {"config": killed, "ranks": ranks, "strike": None},
    ]
    whole, one, other, finished = run_sessions(*sessions)
    assert (whole, one[1], other[0], finished) == ([0, 0], -9, -9, [0, 0])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
