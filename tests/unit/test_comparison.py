"""Results of a grid of runs: differences, intervals, forgetting at equal learning; and which grids are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from codyra_llm.config.grid import Grid, config_of_run, grid_runs, points, read_grid
from codyra_llm.errors import UserError
from codyra_llm.results.comparison import difference, excess, forgotten, last, learned, mean_and_deviation
from codyra_llm.results.measures import RowLosses
from codyra_llm.results.predictors import predictors

Runs = dict[tuple[str, int], list[RowLosses]]


def runs(learned: float, rise: float, seeds: int = 3, noise: float = 0.0, tasks: int = 4) -> Runs:
    """Returns runs whose tasks are learned to a loss that rises by `rise` until the end, except for the last task."""
    found: Runs = {}
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        rows = [draw.normal(0, 0.3, 30) for _ in range(tasks)]  # the same rows for every contestant
        own = np.random.default_rng([seed, round(1000 * learned)])
        found["order1", seed] = [
            RowLosses(
                learned + of_task + own.normal(0, noise, 30), learned + of_task + (rise if number < tasks - 1 else 0.0)
            )
            for number, of_task in enumerate(rows)
        ]
    return found


def test_the_three_numbers() -> None:
    (losses, *_) = runs(2.0, 0.5).values()
    spread = float(np.mean([task.learned.mean() for task in losses])) - 2
    assert learned(losses) == pytest.approx(2.0 + spread)
    assert forgotten(losses) == pytest.approx(0.5)
    assert last(losses) == pytest.approx(2.0 + spread + 0.5 * 3 / 4)


def test_a_difference_is_paired_by_run_and_row() -> None:
    """Rows differ much more than contestants do, but all contestants have the same rows, so differences are decided."""
    found = difference(runs(2.0, 0.5), runs(2.01, 0.4))
    assert found["nll_forgotten"].value == pytest.approx(0.1)
    assert found["nll_learned"].value == pytest.approx(-0.01)
    assert found["nll_learned"].is_decided and found["nll_learned"].high < 0
    uncertain = difference(runs(2.0, 0.5, noise=1.0), runs(2.01, 0.4, noise=1.0))["nll_learned"]
    assert uncertain.low < uncertain.value < uncertain.high and not uncertain.is_decided
    assert difference(runs(2.0, 0.5), {}) == {}


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(60):
        draw = np.random.default_rng(trial)

        def sample(shift: float, draw: np.random.Generator = draw) -> Runs:
            return {
                ("o", seed): [RowLosses(draw.normal(shift, 1, 40), draw.normal(shift, 1, 40)) for _ in range(3)]
                for seed in range(5)
            }

        found = difference(sample(0.3), sample(0.0))["nll_learned"]
        covered += found.low <= 0.3 <= found.high
    assert covered >= 52  # of 60, 95 % of which are 57


def test_forgetting_above_a_line_at_the_same_learning() -> None:
    line = [runs(2.0, 0.8), runs(2.4, 0.4), runs(3.0, 0.0)]
    on = excess(runs(2.2, 0.6), line)
    assert on and on.value == pytest.approx(0.0, abs=1e-9)
    below = excess(runs(2.2, 0.25), line)
    assert below and below.value == pytest.approx(-0.35) and below.high < 0
    assert excess(runs(1.9, 0.1), line) is None, "the line learns less than that"
    assert excess(runs(3.1, 0.1), line) is None
    assert excess(runs(2.2, 0.25), []) is None
    assert excess({}, line) is None


def test_means_and_deviations() -> None:
    mean, deviation = mean_and_deviation([1.0, None, 3.0])
    assert (mean, deviation) == pytest.approx((2.0, 2**0.5))
    assert mean_and_deviation([1.0]) == (1.0, None)
    assert mean_and_deviation([None]) == (None, None)


def grid_file(folder: Path, **compare: Any) -> str:
    path = folder / "grid.yaml"
    path.write_text(f"train: {{learning_rate: 0.001}}\ncompare: {compare!r}\n".replace("None", "null"))
    return str(path)


def test_a_grid_and_its_runs(tmp_path: Path) -> None:
    section = {
        "methods": ["lora", "half", "ewc"],
        "seeds": [1, 2],
        "variants": {"half": {"method": "lora", "merge.scale": 0.5}},
        "curves": {"lora": {"merge.scale": [0.3, 0.7]}},
    }
    base, grid = read_grid(grid_file(tmp_path, **section), {"output_dir": str(tmp_path)}, {"orders": ["order2"]})
    names = ["lora", "lora+scale=0.3", "lora+scale=0.7", "half", "ewc"]
    assert [point.name for point in points(grid)] == names
    every = list(grid_runs(grid))
    assert [run.seed for run in every] == [1] * 5 + [2] * 5
    config = config_of_run(base, every[1])
    assert (config.merge.scale, config.seed, config.order) == (0.3, 1, "order2")
    assert (config.train.learning_rate, config.method) == (0.001, "lora")
    assert config.output_dir == str(tmp_path / "lora+scale=0.3" / "order2-seed1")
    assert config_of_run(base, every[4]).method == "ewc"
    tuned = config_of_run(base, every[1], {"train.learning_rate": 0.5, "merge.scale": 0.9})
    assert (tuned.train.learning_rate, tuned.merge.scale) == (0.5, 0.3), "what a variant is, it stays"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"methods": ["magic"]}, "magic is neither a variant of the file nor a method"),
        ({"methods": ["../x"], "variants": {"../x": {}}}, "is no name for a variant"),
        ({"methods": []}, "each need at least one"),
        ({"methods": ["a"], "variants": {"a": {"adapter.ran": 1}}}, 'compare: a: .*unknown key "adapter.ran"'),
        ({"methods": ["lora"], "curves": {"lora": {"merge.scale": [2.0]}}}, r"compare: lora\+scale=2: .*above 0"),
        ({"seeds": ["x"]}, "compare: seeds.0"),
        ({"method": ["lora"]}, "compare: unknown key 'method'; there are methods, seeds"),
        ({"sweep": {"a": [1], "b": [2]}}, "sweep: names 2 settings; give one"),
        (["lora"], "compare is a section with keys of its own"),
    ],
)
def test_a_grid_that_makes_no_sense(section: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"compare": section}))
    with pytest.raises(UserError, match=problem):
        read_grid(str(path), {}, {})


def test_a_configuration_without_the_section_is_compared_by_default(tmp_path: Path) -> None:
    _, grid = read_grid("quickstart", {}, {"methods": ["lora", "seqlora"]})
    assert grid == Grid(methods=("lora", "seqlora"), orders=("order1",))


def test_one_task_and_losses_that_are_not_finite() -> None:
    alone = {run: losses[:1] for run, losses in runs(2.0, 0.5).items()}
    found = difference(alone, alone)
    assert (found["nll_forgotten"].low, found["nll_forgotten"].high) == (0.0, 0.0)
    broken = runs(2.0, 0.5)
    broken["order1", 0][1].last[3] = np.nan
    assert set(difference(broken, runs(2.1, 0.5))) == {"nll_learned"}
    assert excess(broken, [runs(1.9, 0.8), runs(3.0, 0.0)]) is None


def test_what_predicts_forgetting() -> None:
    forgotten = np.random.default_rng(0).normal(size=30)
    runs = [
        {
            "nll_forgotten": float(value),
            "kl_own": float(np.exp(value)),
            "drift": float(-value),
            "rank": 8.0,
            "bound": None,
        }
        for value in forgotten
    ]
    noise = np.random.default_rng(1).normal(size=30)
    for run, value in zip(runs, noise, strict=True):
        run["update_norm"] = float(value)
    found = predictors(runs)
    assert found["kl_own"].value == pytest.approx(1) and found["drift"].value == pytest.approx(-1)
    assert not found["update_norm"].is_decided
    assert found["update_norm"].value == pytest.approx(float(spearmanr(noise, forgotten)[0]))
    assert "rank" not in found and "bound" not in found and predictors(runs[:3]) == {}
    tied = [
        {"nll_forgotten": float(a), "rank": float(b)} for a, b in zip([1, 2, 2, 3, 5], [4, 4, 5, 7, 6], strict=True)
    ]
    assert predictors(tied)["rank"].value == pytest.approx(float(spearmanr([1, 2, 2, 3, 5], [4, 4, 5, 7, 6])[0]))
