"""The same configuration has the same result in every way of running it; `pytest -s` prints the table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.forked import run_forked

STAGES = ["zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"]
ONE = {"zero": "zero0", "ranks": 1, "micro": 2, "checkpointing": False, "dtype": "float32", "mode": "importance"}
# every stage on two ranks, half of them with gradient checkpointing; every micro batch and number of ranks
FP32 = [
    *({**ONE, "zero": zero, "ranks": 2, "checkpointing": s % 2 == 1} for s, zero in enumerate(STAGES)),
    {**ONE, "checkpointing": True},
    {**ONE, "zero": "zero3"},
] + [{**ONE, "zero": zero, "ranks": 2, "micro": micro} for zero in ("zero1", "zero3") for micro in (1, 4)]
# three ranks share eight rows: some passes have fewer, or none
UNEVEN = [
    {**ONE, "zero": zero, "ranks": 3, "settings": {"data.packing": packing}, "checkpointing": zero == "zero3"}
    for zero, packing in (("zero0", "bucket"), ("zero2", "pack"), ("zero3", "bucket"))
]
BF16 = [
    {**ONE, "zero": zero, "ranks": 2, "micro": (1, 2, 4)[s % 3], "checkpointing": True, "dtype": "bfloat16"}
    for s, zero in enumerate(STAGES)
]
MODES = [
    {**ONE, "zero": zero, "ranks": 2, "mode": mode} for mode in ("budget", "reference") for zero in ("zero2", "zero3")
]
QUANTIZED = [
    {**ONE, "zero": zero, "ranks": 2, "quantization": quantization, "checkpointing": zero == "zero3"}
    for quantization, zeros in (("nf4", ("zero1", "zero2", "zero3", "zero3-offload")), ("int8", ("zero1", "zero2")))
    for zero in zeros
]
EIGHT_BITS = [
    {**ONE, "zero": zero, "ranks": 2, "rank": 16, "adam_bits": 8}  # with fewer than 4096 values, all stays in 32 bits
    for zero in ("zero1", "zero2", "zero3", "zero2-offload")
]
WAYS = [*FP32, *UNEVEN, *BF16, *MODES]
ALL = [*WAYS, *QUANTIZED, *EIGHT_BITS]


def reference_of(way: dict[str, Any]) -> dict[str, Any]:
    wide = {"adam_bits": 32} if "adam_bits" in way else {}
    return {**ONE, **{key: way[key] for key in ("dtype", "mode", "quantization", "rank") if key in way}, **wide}


def name(way: dict[str, Any]) -> str:
    recomputed = "-checkpointing" if way["checkpointing"] else ""
    bits = f"-adam{way['adam_bits']}" if "adam_bits" in way else ""
    kind = f"{way.get('quantization', way['dtype'])}-{way['mode']}{bits}"
    return f"{kind}-{way['zero']}-{way['ranks']}x{way['micro']}{recomputed}"


@pytest.fixture(scope="module")
def results(tiny_folder: Path, wide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results that the worker saved, by way of running."""
    folder = tmp_path_factory.mktemp("equality")
    ways = {name(way): way for way in [*ALL, *map(reference_of, ALL)]}
    models = {key: str(wide_folder if "quantization" in way else tiny_folder) for key, way in ways.items()}
    jobs = [{"way": way, "model": models[key], "output": str(folder / key)} for key, way in ways.items()]
    for key, statuses in zip(ways, run_forked("tests.distributed.worker", jobs), strict=True):
        assert not any(statuses), (folder / f"{key}.log").read_text()[-4000:]
    return {key: torch.load(folder / key) for key in ways}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of the table, which is printed after the last test."""
    rows: list[str] = []
    yield rows
    head = "| dtype | threshold | ZeRO | ranks x micro batch | recomputed | losses | gates | weights |"
    print("", head, "|---" * 8 + "|", *rows, sep="\n")


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_every_way_of_running_gives_the_same(results: dict[str, Any], table: list[str], way: dict[str, Any]) -> None:
    one, other = results[name(reference_of(way))], results[name(way)]
    losses, gates, weights = (
        max(float((x.double() - y.double()).abs().max()) for x, y in pairs)
        for pairs in (
            [(torch.tensor(other["losses"]), torch.tensor(one["losses"]))],
            zip(other["gates"], one["gates"], strict=True),
            [(other["weights"][key], weight) for key, weight in one["weights"].items()],
        )
    )
    recomputed = "yes" if way["checkpointing"] else "no"
    table.append(
        f"| {way['dtype']} | {way['mode']} | {way['zero'].removeprefix('zero')} | {way['ranks']} x {way['micro']} "
        f"| {recomputed} | {losses:.0e} | {gates:.0e} | {weights:.0e} |"
    )
    for ours, theirs in zip(other["gates"], one["gates"], strict=True):
        assert torch.equal(ours == 0, theirs == 0)
    assert other["weights"].keys() == one["weights"].keys()
    if way["dtype"] == "bfloat16":
        assert losses < 1e-2
        return
    assert max(losses, gates, weights) < 1e-5
    assert other["live_rank"] == one["live_rank"]
    for (nll, predictions), (expected_nll, expected) in zip(other["scores"], one["scores"], strict=True):
        assert nll == pytest.approx(expected_nll, abs=1e-4)
        assert predictions == expected


@pytest.mark.parametrize("way", QUANTIZED, ids=name)
def test_a_quantized_base_too(results: dict[str, Any], way: dict[str, Any]) -> None:
    """Equal up to the first merge; after it, a difference in the last bit may be rounded to another quantized value."""
    one, other = results[name(reference_of(way))], results[name(way)]
    half = len(one["losses"]) // 2
    assert other["losses"][:half] == pytest.approx(one["losses"][:half], abs=1e-5)
    assert other["losses"][half:] == pytest.approx(one["losses"][half:], abs=0.02)
    assert torch.equal(other["gates"][0] == 0, one["gates"][0] == 0)
    torch.testing.assert_close(other["gates"][0], one["gates"][0], atol=1e-5, rtol=0)
    assert other["weights"].keys() == one["weights"].keys()
    for key, weight in one["weights"].items():
        if key.endswith("proj.weight"):
            assert (other["weights"][key] == weight).float().mean() > 0.99, key


@pytest.mark.parametrize("way", EIGHT_BITS, ids=name)
def test_moments_of_8_bits_learn_and_prune_the_same(results: dict[str, Any], way: dict[str, Any]) -> None:
    one, other = results[name(reference_of(way))], results[name(way)]
    assert other["losses"] == pytest.approx(one["losses"], abs=0.1)
    assert other["losses"] != pytest.approx(one["losses"], abs=1e-4), "8 bits are not 32"
    for ours, theirs in zip(other["gates"], one["gates"], strict=True):
        assert ((ours == 0) == (theirs == 0)).float().mean() > 0.9


@pytest.mark.parametrize("way", [reference_of(WAYS[0]), *map(reference_of, [BF16[0], MODES[0], MODES[2]])], ids=name)
def test_the_comparison_is_of_something(results: dict[str, Any], way: dict[str, Any]) -> None:
    run = results[name(way)]
    zeros = torch.cat(run["gates"]) == 0
    assert 0 < zeros.sum() < zeros.numel(), "some components are pruned, not all"
    assert run["losses"][0] > run["losses"][7] + 0.1, "something is learned"
    assert run["live_rank"][0] == 4
