"""The command for comparisons: stopped and resumed, with a variant that fails, with a sweep."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from codyra_llm.cli.compare import parse_arguments
from codyra_llm.config import to_yaml
from codyra_llm.config.grid import config_of_run, grid_runs
from codyra_llm.data.stream import resolve_order
from codyra_llm.report.reporter import Reporter
from codyra_llm.results.measures import measures
from codyra_llm.results.schema import read_results
from codyra_llm.workflows.train import PHASES
from tests.e2e.conftest import Command
from tests.e2e.test_run import tiny_config

SECTION = {
    "methods": ["lora", "seqlora", "codyra"],
    "seeds": [1, 2],
    "orders": ["FOMC"],
    "curves": {"lora": {"merge.scale": [0.5]}},
}


@pytest.fixture
def grid(tiny_folder: Path, tmp_path: Path) -> Path:
    """Configuration file of a comparison of three methods on two tasks of the sample."""
    config = tiny_config(tiny_folder, tmp_path / "grid", **{"evaluate.scores": "nll", "tracking": []})
    tasks = yaml.safe_load(Path("tasks/trace/trace.yaml").read_text())
    (tmp_path / "tasks.yaml").write_text(
        yaml.safe_dump({**tasks, "orders": {"two": ["FOMC", "NumGLUE-cm"], "back": ["NumGLUE-cm", "FOMC"]}})
    )
    content = {**yaml.safe_load(to_yaml(config)), "compare": {**SECTION, "orders": ["two", "back"]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**content, "task_file": str(tmp_path / "tasks.yaml")}))
    return tmp_path / "grid.yaml"


def test_a_grid_that_is_stopped_resumes(
    grid: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "grid"
    begun: list[str] = []
    progress = Reporter.progress

    def stop_in_the_third(self: Reporter, task: str, total: int, done: int) -> object:
        begun.append(task)
        if len(begun) == 6:
            (self.folder.path / "stop").touch()
        return progress(self, task, total, done)

    monkeypatch.setattr(Reporter, "progress", stop_in_the_third)
    with pytest.raises(SystemExit) as stop:
        command("compare.py", "--config", grid, "--orders", "two")
    assert stop.value.code == 75
    finished = sorted(str(path.parent.relative_to(output)) for path in output.glob("*/*/model"))
    assert finished == ["lora+scale=0.5/two-seed1", "lora/two-seed1"]
    said = command("compare.py", "--config", grid, "--orders", "two")
    assert "run 8 of 8: codyra/two-seed2" in said and "above the line of lora" in said
    assert len(begun) == 6 + 1 + 2 * 5, "what was finished is not run again"

    found = json.loads((output / "comparison.json").read_text())
    names = [each["name"] for each in found["contestants"]]
    assert names == ["lora", "lora+scale=0.5", "seqlora", "codyra"]
    assert all(each["runs"] == 2 and not each["failed"] for each in found["contestants"])
    folders = [output / "codyra" / f"two-seed{seed}" for seed in (1, 2)]
    single = [measures(read_results(folder), folder)["nll_forgotten"] for folder in folders]
    assert found["contestants"][3]["mean"]["nll_forgotten"] == pytest.approx(sum(single) / 2)
    rows = list(csv.DictReader((output / "comparison.csv").open()))
    assert {row["contestant"] for row in rows} == set(names)
    assert any(row["measure"] == "nll_final_difference" and row["low"] for row in rows)
    for file in ("comparison.md", "comparison.tex", "forgetting.png", "forgetting_by_task.svg", "report.html"):
        assert (output / file).stat().st_size > 500
    assert "\\toprule" in (output / "comparison.tex").read_text()


def test_a_signal_that_comes_too_late_for_a_run_stops_the_comparison(
    grid: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PHASES["save"]

    def killed_while_saving(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)

    monkeypatch.setitem(PHASES, "save", killed_while_saving)
    with pytest.raises(SystemExit) as stop:
        command("compare.py", "--config", grid, "--seeds", 1, "--orders", "two")
    assert stop.value.code == 75
    assert [path.parent.parent.name for path in (tmp_path / "grid").glob("*/*/model")] == ["lora"]


def test_the_file_of_a_comparison_stops_a_run_of_its_sweep(
    grid: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    progress = Reporter.progress

    def stop_in_the_first(self: Reporter, task: str, total: int, done: int) -> object:
        begun.append(task)
        (tmp_path / "grid" / "stop").touch()
        return progress(self, task, total, done)

    monkeypatch.setattr(Reporter, "progress", stop_in_the_first)
    with pytest.raises(SystemExit) as stop:
        command("compare.py", "--config", grid, "--seeds", 1, "--orders", "two", "--sweep", "learning_rate")
    assert stop.value.code == 75
    assert begun == ["FOMC"]


def test_a_variant_that_fails_is_listed(grid: Path, tmp_path: Path, command: Command) -> None:
    content = yaml.safe_load(grid.read_text())
    content["compare"] |= {"methods": ["lora", "hasty"], "seeds": [1], "orders": ["two"], "curves": {}}
    content["compare"]["variants"] = {"hasty": {"method": "codyra", "adapter.dense_fraction": 0.99}}
    grid.write_text(yaml.safe_dump(content))
    command("compare.py", "--config", grid)
    table = (tmp_path / "grid" / "comparison.md").read_text()
    assert "Failed: hasty/two-seed1: task FOMC: the threshold can prune nothing" in table


def test_each_variant_gets_its_own_learning_rate(grid: Path, tmp_path: Path, command: Command) -> None:
    how = ("--methods", "lora", "seqlora", "--seeds", "1", "--orders", "two")
    said = command("compare.py", "--config", grid, *how, "--sweep", "learning_rate=1e-4,3e-3")
    sweep = json.loads((tmp_path / "grid" / "sweep.json").read_text())
    assert [len(tries) for tries in sweep["tried"].values()] == [2, 2]
    for name, tries in sweep["tried"].items():
        best = min(tries, key=lambda each: each["nll"])
        assert sweep["chosen"][name] == {"train.learning_rate": best["train.learning_rate"]}
        assert f"sweep: {name} gets" in said
        config = read_results(tmp_path / "grid" / name / "two-seed1").config
        assert config["train"]["learning_rate"] == best["train.learning_rate"]
    tried = read_results(tmp_path / "grid" / "sweep" / "lora" / "learning_rate=0.003")
    whole = read_results(tmp_path / "grid" / "lora" / "two-seed1")
    for carved, task in zip(tried.data.tasks, whole.data.tasks, strict=True):
        assert carved.train_rows + carved.test_rows <= task.train_rows, "rows are carved from train"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "--config is needed"),
        (["--config", "quickstart", "--methods", "magic"], "magic is neither a variant of the file nor a method"),
        (["--config", "compare_nano", "--seed", "1"], "--seed is for a single run; a comparison takes --seeds"),
        (["--config", "quickstart", "--sweep", "nothing"], "--sweep nothing: names 0 settings"),
        (["--config", "quickstart", "--sweep", "learning_rate=a"], "a are not numbers"),
        (["--config", "compare_nano", "--orders", "zz"], '"zz" is neither an order nor a task of tasks/nano/nano.yaml'),
        (["--config", "compare_nano", "--orders", "order1", "short"], ") and short ("),
        (["--config", "compare_nano", "--write_runs", "--orders", "order1", "short"], "are of other tasks"),
    ],
)
def test_a_wrong_call_is_one_line(options: list[str], problem: str, refused: Command) -> None:
    assert problem in refused("compare.py", *options)


def test_orders_are_the_configuration_s_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("order: [FOMC, NumGLUE-cm]\n")
    base, grid, _ = parse_arguments(["--config", str(tmp_path / "two.yaml"), "--methods", "lora"])
    assert grid.orders == ("FOMC,NumGLUE-cm",)
    order = config_of_run(base, next(grid_runs(grid))).order
    tasks = ["C-STANCE", "FOMC", "NumGLUE-cm"]
    assert resolve_order(order, {}, dict.fromkeys(tasks), "tasks.yaml") == ["FOMC", "NumGLUE-cm"]
    _, grid, _ = parse_arguments(["--config", "compare_nano"])
    assert grid.orders == ("order1",)


def test_runs_that_were_made_one_by_one_are_read_and_probed(grid: Path, tmp_path: Path, command: Command) -> None:
    how = ("--config", grid, "--methods", "lora", "codyra", "--seeds", 1, "--orders", "two")
    said = command("compare.py", *how, "--write_runs")
    runs = sorted((tmp_path / "grid" / "runs").iterdir())
    assert f"3 configurations are in {tmp_path / 'grid' / 'runs'}" in said and len(runs) == 3
    for config in runs:
        command("train_trace.py", "--config", config, "--evaluate.divergence", "true")
    said = command("compare.py", *how, "--evaluate.divergence", "true")
    assert said.count("this run is finished") == 3 and "task 1 of 2" not in said
    seeds = [tmp_path / "grid" / "codyra" / "two-seed1", tmp_path / "other"]
    other = ("--seed", 2, "--output_dir", seeds[1], "--evaluate.divergence", "true")
    command("train_trace.py", "--config", seeds[0] / "config.yaml", *other)
    said = command("probe.py", "ranks", *seeds, "--output", tmp_path / "ranks")
    assert "noise (between seeds)" in said and (tmp_path / "ranks.png").stat().st_size > 5000
    copied = shutil.copytree(seeds[0], tmp_path / "copied")  # the same seed again
    for wrong in (
        [tmp_path / "grid" / "lora" / "two-seed1"],
        ["--output", tmp_path / "nowhere" / "ranks"],
        [copied],
    ):
        with pytest.raises(SystemExit):
            command("probe.py", "ranks", *seeds, *wrong)
    said = command("probe.py", "placement", tmp_path / "grid", "--output", tmp_path / "where")
    lines = said.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["lora", "4"], ["codyra", "4"]] and "of 2 tasks" in lines[1]
    assert all((tmp_path / f"where-{part}.png").stat().st_size > 5000 for part in ("learned", "forgotten"))
    twice = [tmp_path / "grid", shutil.copytree(tmp_path / "grid", tmp_path / "grid-copied")]
    said = command("probe.py", "predictors", *twice, "--output", tmp_path / "what")
    assert said.startswith("over 6 runs") and "KL to the model before" in said and (tmp_path / "what.png").is_file()
    for wrong in (["predictors", tmp_path / "grid"], ["placement", tmp_path], ["predictors", seeds[0]]):
        with pytest.raises(SystemExit):
            command("probe.py", *wrong)
    found = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert [each["runs"] for each in found["contestants"]] == [1, 1, 1]
    assert all(each["mean"]["kl_own"] > 0 for each in found["contestants"])
    with pytest.raises(SystemExit):
        command("compare.py", *how, "--write_runs", "--sweep", "learning_rate")
