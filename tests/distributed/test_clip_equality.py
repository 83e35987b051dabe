"""A run of picture domains has the same result in every way of running it, though its loss couples a step's rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codyra_llm.results.schema import read_results
from tests.clip import save_clip
from tests.distributed.forked import run_forked

ONE = {"zero": "zero0", "ranks": 1, "micro": 8}  # the whole step in one pass
WAYS: list[dict[str, Any]] = [
    *({**ONE, "micro": micro} for micro in (1, 2, 4, 3)),  # the last of three passes of three has two pictures
    *({"zero": zero, "ranks": 2, "micro": 2} for zero in ("zero0", "zero2", "zero3")),
    {"zero": "zero3", "ranks": 2, "micro": 8},
    {"zero": "zero3", "ranks": 1, "micro": 8},
    {"zero": "zero0", "ranks": 3, "micro": 1},  # more passes than prompts
    {**ONE, "micro": 2, "settings": {"model.gradient_checkpointing": True}},
    {"zero": "zero3", "ranks": 2, "micro": 2, "killed_at": 11},  # started on one rank at stage 0
]
KILLED: dict[str, Any] = {**ONE, "killed_at": 12}


def name(way: dict[str, Any]) -> str:
    more = ("-recomputed" if "settings" in way else "") + ("-killed" if "killed_at" in way else "")
    return f"{way['zero']}-{way['ranks']}x{way['micro']}{more}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clip")
    model = save_clip(folder / "model")
    ways = {name(way): way for way in [ONE, KILLED, *WAYS]}
    jobs = [{"way": way, "model": str(model), "output": str(folder / key)} for key, way in ways.items()]
    for key, statuses in zip(ways, run_forked("tests.distributed.clip_worker", jobs), strict=True):
        assert not any(statuses), (folder / f"{key}.log").read_text()[-4000:]
    return {key: folder / key for key in ways}


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_every_way_of_running_gives_the_same(folders: dict[str, Path], way: dict[str, Any]) -> None:
    one, other = (read_results(folders[name(each)]) for each in (ONE, way))
    for ours, theirs in zip(other.losses, one.losses, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert ours.live_rank == theirs.live_rank
    assert other.matrices == one.matrices
    for of_stage, its in zip(other.answer_nll, one.answer_nll, strict=True):
        assert of_stage == pytest.approx(its, abs=1e-4)
    assert [ranks.by_projection for ranks in other.ranks] == [ranks.by_projection for ranks in one.ranks]
    found, expected = (load_file(folders[name(each)] / "model" / "model.safetensors") for each in (way, ONE))
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, atol=1e-5, rtol=0)


def test_a_run_that_was_killed_ends_to_the_bit_as_one_that_was_not(folders: dict[str, Path]) -> None:
    whole, killed = (read_results(folders[name(way)]) for way in (ONE, KILLED))
    assert [(each.task, each.phase, each.step) for each in killed.sessions] == [(2, "train", 2)]
    assert killed.losses == whole.losses
    assert (killed.matrices, killed.answer_nll) == (whole.matrices, whole.answer_nll)
    ours, theirs = (load_file(folders[name(way)] / "model" / "model.safetensors") for way in (KILLED, ONE))
    assert all(torch.equal(ours[key], weight) for key, weight in theirs.items())


def test_the_comparison_is_of_something(folders: dict[str, Path]) -> None:
    results = read_results(folders[name(ONE)])
    for losses in results.losses:
        assert losses.loss[-1] < losses.loss[0] - 0.3
    assert any(0 < rank < 4 for ranks in results.ranks for rank in ranks.by_projection.values()), "some are pruned"
