"""A run that is killed anywhere and started again ends as if nothing had happened."""

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.forked import run_forked

MOMENTS = 20
# places that must be among them, whatever chance says
PLACES = ["add_delta", "save_model", "write", "replace_folder", "write_entry", "_answer_batch", "append_answers"]


def run_sessions(*sessions: dict) -> list[list[int]]:
    return run_forked("tests.distributed.preempted", list(sessions))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout: what it draws must not depend on the interruption either."""
    folder = tmp_path_factory.mktemp("models") / "tiny-with-dropout"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return folder


def config_of(model: Path, output: Path, **overrides: object) -> dict:
    return {
        "model.name_or_path": str(model),
        "output_dir": str(output),
        "order": ["FOMC", "NumGLUE-cm"],
        "adapter.rank": 4,
        "train.global_batch_size": 8,
        "train.per_device_train_batch_size": 4,
        "train.num_train_epochs": 1,
        "train.learning_rate": 0.01,
        "train.checkpoint_every": 3,
        "data.max_train_examples": 64,
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
    """The folder of a run that nothing interrupts, and the functions that it called, in order.

    Another run before it fills the caches: those that are struck find them filled as well.
    """
    before = {"config": config_of(model, folder / "before")}
    watched = {"config": config_of(model, folder / "run"), "watch": str(folder / "called")}
    assert run_sessions(before, watched) == [[0], [0]]
    return folder / "run", (folder / "called").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An uninterrupted run and what it called."""
    return uninterrupted(model, tmp_path_factory.mktemp("whole"))


def test_killed_at_random_moments(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, called = whole
    draw = random.Random(20)
    moments: list = [1 + draw.choice([i for i, name in enumerate(called) if name == place]) for place in PLACES]
    moments += [draw.uniform(0.1, 1.0) for _ in range(4)]
    moments += [draw.randrange(called.index("_evaluate"), len(called)) for _ in range(MOMENTS - len(moments))]
    sessions = []
    for number, moment in enumerate(moments):
        config = config_of(model, tmp_path / str(number))
        sessions += [{"config": config, "strike": [0, moment, "SIGKILL"]}, {"config": config}]
    statuses = run_sessions(*sessions)
    for number, moment in enumerate(moments):
        place = called[moment - 1] if isinstance(moment, int) else "clock"
        print(f"moment {number}: {moment} ({place}): {statuses[2 * number]} then {statuses[2 * number + 1]}")
        assert statuses[2 * number] in ([-9], [0]) if isinstance(moment, float) else statuses[2 * number] == [-9]
        assert statuses[2 * number + 1] == [0]
        assert_same_run(tmp_path / str(number), expected)


def test_killed_again_and_again(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, called = whole
    config = config_of(model, tmp_path / "run")
    begin = called.index("_evaluate")
    kills = [
        {"config": config, "strike": [0, begin + (len(called) - begin) * part // 10, "SIGKILL"]}
        for part in (2, 1, 2, 1, 1)  # 7 tenths in all: none of them can reach the end
    ]
    statuses = run_sessions(*kills, {"config": config})
    assert statuses == [[-9]] * 5 + [[0]]
    assert_same_run(tmp_path / "run", expected)


def test_answers_that_were_given_are_not_asked_for_again(
    whole: tuple[Path, list[str]], model: Path, tmp_path: Path
) -> None:
    expected, called = whole
    config = config_of(model, tmp_path / "run")
    kept = [i for i, name in enumerate(called) if name == "append_answers"]
    first = called[: kept[1]].count("_answer_batch")  # given before the second round was to be kept
    struck = {"config": config, "strike": [0, 1 + kept[1], "SIGKILL"]}
    assert run_sessions(struck, {"config": config, "watch": str(tmp_path / "called")}) == [[-9], [0]]
    again = (tmp_path / "called").read_text().split().count("_answer_batch")
    assert first == 2
    assert again == called.count("_answer_batch") - 1
    assert_same_run(tmp_path / "run", expected)


STOPS = [
    # called when asked; what `stopped` says; called at most once more
    ("train_task", "in task 1 (FOMC), after step ", "on_step"),
    ("_answer_batch", "while scoring 0-base, after ", "on_round"),
    ("add_delta", "while merging task 1 (FOMC)", "add_delta"),
]


def test_stopped_when_asked(whole: tuple[Path, list[str]], model: Path, tmp_path: Path) -> None:
    expected, called = whole
    cases = [(stop, how) for stop in STOPS for how in ("SIGTERM", "SIGUSR1", "stop file")]
    configs = [config_of(model, tmp_path / f"{place}-{how}") for (place, _, _), how in cases]
    struck = [
        {"config": config, "strike": [0, 1 + called.index(place), how], "watch": config["output_dir"] + ".called"}
        for config, ((place, _, _), how) in zip(configs, cases, strict=True)
    ]
    assert run_sessions(*struck) == [[75]] * len(cases)
    for config, ((place, where, step), _) in zip(configs, cases, strict=True):
        folder = Path(config["output_dir"])
        after = Path(f"{folder}.called").read_text().splitlines()[called.index(place) :]
        assert after.count(step) <= 1
        assert (folder / "stopped").read_text().startswith(where)
        assert not (folder / "stop").exists()
    assert run_sessions(*({"config": config} for config in configs)) == [[0]] * len(cases)
    for config in configs:
        assert_same_run(Path(config["output_dir"]), expected)


def test_one_rank_is_asked_and_all_stop(tiny_folder: Path, tmp_path: Path) -> None:
    configs = [config_of(tiny_folder, tmp_path / str(at), deepspeed="ds_configs/zero2.json") for at in range(3)]
    struck = [
        {"config": config, "ranks": 2, "strike": [1, calls, "SIGTERM"]}
        for config, calls in zip(configs, ("draw_seed:5", "_answer_batch:3", "add_delta:9"), strict=True)
    ]
    assert run_sessions(*struck) == [[75, 75]] * 3
    assert len({(Path(config["output_dir"]) / "stopped").read_text() for config in configs}) == 3


WAYS = {
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


def test_gone_on_with_by_other_means(
    without_dropout: tuple[Path, list[str]], tiny_folder: Path, tmp_path: Path
) -> None:
    expected, called = without_dropout
    steps = [i for i, name in enumerate(called) if name == "on_step"]
    sessions = []
    for before, after in CHANGES:
        for way, strike in ((before, [0, steps[len(steps) * 3 // 4], "SIGKILL"]), (after, None)):
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
        assert len(ours["sessions"]) == 1, "the second session went on with what the first had done"
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
def test_two_ranks_killed_and_gone_on_with_to_the_bit(tiny_folder: Path, tmp_path: Path, way: str) -> None:
    settings = dict(WAYS[way])
    ranks = settings.pop("ranks")
    expected, killed = (config_of(tiny_folder, tmp_path / name, **settings) for name in ("whole", "killed"))
    sessions = [
        {"config": expected, "ranks": ranks, "strike": None},
        {"config": killed, "ranks": ranks, "strike": [1, 6000, "SIGKILL"]},
        {"config": killed, "ranks": ranks, "strike": [0, 6000, "SIGKILL"]},
        {"config": killed, "ranks": ranks, "strike": None},
    ]
    whole, one, other, finished = run_sessions(*sessions)
    assert (whole, one[1], other[0], finished) == ([0, 0], -9, -9, [0, 0])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
