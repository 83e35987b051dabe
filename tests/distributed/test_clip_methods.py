"""Methods on pictures: the same result for any partition of a step and after a resume; LoRA without their own part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.clip import save_clip
from tests.distributed.forked import run_forked

Settings = dict[str, Any]
METHODS: dict[str, Settings] = {
    "replay": {"replay.fraction": 0.5},
    "lwf": {"lwf.strength": 0.5},
    "zscl": {"zscl.strength": 0.5},
    "inflora": {"inflora.rows": 7},
    "codyra_protected": {"codyra_protected.rows": 7},
    "derpp": {"derpp.fraction": 0.5, "derpp.logits": 2},
    "ewc": {"ewc.strength": 100.0, "ewc.rows": 5},
    "ewc_lora": {"ewc_lora.strength": 100.0, "ewc_lora.rows": 5},
    "migu": {},
}
NOTHING: dict[str, tuple[str, Settings]] = {
    "replay": ("lora", {"replay.fraction": 0.0}),
    "lwf": ("lora", {"lwf.strength": 0.0}),
    "zscl": ("lora", {"zscl.strength": 0.0}),
    "ewc": ("seqlora", {"ewc.strength": 0.0}),
}
WAYS = {
    "one": {"zero": "zero0", "ranks": 1, "micro": 8},  # the whole step in one pass
    "cut": {"zero": "zero0", "ranks": 1, "micro": 3},
    "zero2": {"zero": "zero2", "ranks": 2, "micro": 3},
    "zero3": {"zero": "zero3", "ranks": 2, "micro": 4},
}
# every hook and kind of pass at stage 3; for the other ways, one method each that changes the loss of a step
OTHERS = {
    "cut": ("lwf",),
    "zero2": ("zscl",),
    "zero3": ("replay", "zscl", "inflora", "derpp", "ewc", "ewc_lora", "migu"),
}
RESUMED = ("replay", "zscl", "inflora")
RUNS = [(way, method) for way, of_way in OTHERS.items() for method in of_way]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results that the worker saved, by way of running and name of the run."""
    folder = tmp_path_factory.mktemp("clip_methods")
    model = save_clip(folder / "model")
    runs: dict[str, dict[str, Settings]] = {way: {} for way in WAYS}
    for method, settings in {"lora": {}, "seqlora": {}, **METHODS}.items():
        runs["one"][method] = {"method": method, **settings}
    for method, (_, settings) in NOTHING.items():
        runs["one"][f"{method}-nothing"] = {"method": method, **settings}
    for method in RESUMED:
        runs["one"][f"{method}-resumed"] = {"method": method, **METHODS[method], "interrupted": True}
    for way, method in RUNS:
        runs[way][method] = {"method": method, **METHODS[method]}
    jobs = [
        {"way": WAYS[way], "model": str(model), "output": str(folder / way), "runs": of_way}
        for way, of_way in runs.items()
    ]
    for job, statuses in zip(jobs, run_forked("tests.distributed.clip_methods_worker", jobs), strict=True):
        assert not any(statuses), Path(f"{job['output']}.log").read_text()[-4000:]
    return {way: torch.load(folder / way) for way in WAYS}


@pytest.mark.parametrize(("way", "method"), RUNS)
def test_a_method_is_the_same_however_it_runs(results: dict[str, dict[str, Any]], way: str, method: str) -> None:
    one, other = results["one"][method], results[way][method]
    for key in ("losses", "penalty"):
        assert other[key] == pytest.approx(one[key], abs=1e-5), key
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, atol=5e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", NOTHING)
def test_a_method_whose_own_part_is_nothing(results: dict[str, dict[str, Any]], method: str) -> None:
    same(results["one"][NOTHING[method][0]], results["one"][f"{method}-nothing"])


@pytest.mark.parametrize("method", RESUMED)
def test_an_interrupted_task_ends_to_the_bit_as_one_that_was_not(
    results: dict[str, dict[str, Any]], method: str
) -> None:
    same(results["one"][method], results["one"][f"{method}-resumed"])


@pytest.mark.parametrize("method", METHODS)
def test_the_comparison_is_of_something(results: dict[str, dict[str, Any]], method: str) -> None:
    """Losses of the second domain differ from those of LoRA."""
    plain = results["one"]["seqlora" if method == "ewc" else "lora"]
    losses = results["one"][method]["losses"]
    assert losses[3:] != pytest.approx(plain["losses"][3:], abs=1e-4)


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"] == other["losses"]
    assert all(torch.equal(other["weights"][name], weight) for name, weight in one["weights"].items())
