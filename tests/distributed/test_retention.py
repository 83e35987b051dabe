"""Retention is the same at every ZeRO stage, on one rank or more, packed or padded, in chunks of any size."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.forked import run_forked
from tests.distributed.test_methods import job

RETENTION = {
    "retention.prompts": 0.7,
    "retention.answers": 0.3,
    "retention.own_text": 3.0,
    "retention.budget": 0.0001,
    "retention.protected": 0.25,
    "retention.texts": 5,
    "retention.text_length": 14,
    "retention.texts_per_step": 3,
}
SOFTLY = {**RETENTION, "retention.protected_softly": True, "retention.every": 2}
TOP = {name: value for name, value in RETENTION.items() if name not in ("retention.prompts", "retention.answers")}
TOP |= {"retention.top_k": 9}
CHUNKED = {"logits_bytes": 4 * 768 * 3}  # three tokens at once: numbers of head calls differ by rank
JOBS: dict[str, dict[str, Any]] = {
    "one": job("codyra", **RETENTION),
    "off": job("codyra"),
    "packed": job("codyra", **RETENTION, **{"data.packing": "pack"}),
    "chunked": job("codyra", **RETENTION) | CHUNKED,
    **{f"{zero}-2": job("codyra", zero, 2, **RETENTION) for zero in ("zero0", "zero1", "zero2", "zero3")},
    "zero3-3": job("codyra", "zero3", 3, **RETENTION),
    "zero3-2-chunked": job("codyra", "zero3", 2, **RETENTION) | CHUNKED,
    "off-zero3-2-chunked": job("codyra", "zero3", 2) | CHUNKED,
    **{f"{kind} alone": job("lora", **{f"retention.{kind}": 0.5}) for kind in ("prompts", "answers", "own_text")},
    "protected alone": job("lora", **{"retention.protected": 0.5}),
    **{
        f"softly{way}": job("lora", *ranks, **SOFTLY)
        for way, ranks in (("", ()), ("-zero2-2", ("zero2", 2)), ("-zero3-2", ("zero3", 2)))
    },
    "top": job("lora", **TOP),
    "top-zero2-2": job("lora", "zero2", 2, **TOP),
    "top-zero3-2-chunked": job("lora", "zero3", 2, **TOP) | CHUNKED,
    "top-packed": job("lora", **TOP, **{"data.packing": "pack"}),
    "all of own_text alone": job("lora", **{"retention.own_text": 0.5, "retention.top_k": 10**6}),
    "lora": job("lora"),
    "seqlora": job("seqlora", **{**RETENTION, "retention.protected": 0.0}),
    "seqlora-zero2": job("seqlora", "zero2", 2, **{**RETENTION, "retention.protected": 0.0}),
}


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("retention")
    sent = [{"way": way, "model": str(tiny_folder), "output": str(folder / name)} for name, way in JOBS.items()]
    for name, statuses in zip(JOBS, run_forked("tests.distributed.worker", sent), strict=True):
        assert not any(statuses), Path(f"{folder / name}.log").read_text()[-4000:]
    return {name: torch.load(folder / name) for name in JOBS}


@pytest.mark.parametrize(
    "name",
    [name for name in JOBS if name not in ("one", "off", "lora", "seqlora", "softly", "top") and "alone" not in name],
)
def test_it_is_the_same_however_it_runs(results: dict[str, dict[str, Any]], name: str) -> None:
    one, other = (
        results[name.partition("-")[0] if name.startswith(("seqlora", "off", "softly", "top")) else "one"],
        results[name],
    )
    assert other["losses"] == pytest.approx(one["losses"], abs=1e-5)
    for ours, theirs in zip(other["divergence"], one["divergence"], strict=True):
        assert (ours.pop("factor") or 0) == pytest.approx(theirs["factor"] or 0, rel=1e-3)
        assert ours == pytest.approx({kind: theirs[kind] for kind in ours}, abs=1e-5)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][key], weight, atol=2e-5, rtol=1e-4, msg=key)


def test_with_all_tokens_kept_it_is_what_it_is_without(results: dict[str, dict[str, Any]]) -> None:
    ours, theirs = results["all of own_text alone"], results["own_text alone"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    for mine, other in zip(ours["divergence"], theirs["divergence"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_it_starts_at_nothing_and_moves_the_factor(results: dict[str, dict[str, Any]]) -> None:
    found = results["one"]["divergence"]
    kinds = ("prompts", "answers", "own_text")
    assert [found[0][kind] for kind in kinds] == pytest.approx([0] * 3, abs=1e-6), "the model is still what it was"
    assert all(max(step[kind] for step in found) > 1e-5 for kind in kinds)
    assert found[1]["factor"] < found[0]["factor"] == 1, "nothing has changed yet"
    assert found[2]["factor"] > found[1]["factor"], "the second step has changed more than the budget"
    assert results["one"]["losses"][2:] != pytest.approx(results["off"]["losses"][2:], abs=1e-4)


def test_only_some_steps_measure_it(results: dict[str, dict[str, Any]]) -> None:
    found = results["softly"]["divergence"]
    per_task = len(found) // 2
    assert [len(step) > 1 for step in found] == [step % 2 == 1 for step in range(per_task)] * 2
    assert found[0]["factor"] == 1 and found[per_task]["factor"] == 1


@pytest.mark.parametrize("kind", ["prompts", "answers", "own_text", "protected"])
def test_each_part_works_alone(results: dict[str, dict[str, Any]], kind: str) -> None:
    ours, lora = results[f"{kind} alone"], results["lora"]
    assert ours["losses"][2:] != lora["losses"][2:], "the same draws, of the same task"
    assert {*ours["divergence"][-1]} == {"factor"} | ({kind} - {"protected"})
