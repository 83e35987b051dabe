"""The same configuration gives the same result under every ZeRO stage and number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("worker.py")
REPOSITORY = WORKER.parents[2]
WAYS = [(0, 1), (1, 2), (2, 2), (3, 2), (0, 2), (3, 1)]  # (ZeRO stage, ranks)
MODES = ["importance", "budget", "reference"]


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the worker saved, by way of running."""
    folder = tmp_path_factory.mktemp("equality")
    saved = {}
    for stage, ranks in WAYS:
        output = folder / f"stage{stage}-ranks{ranks}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        done = subprocess.run(
            [*command, str(WORKER), str(tiny_folder), str(stage), str(output)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        saved[stage, ranks] = torch.load(output)
    return saved


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: f"zero{way[0]}-{way[1]}ranks")
def test_every_way_of_running_gives_the_same(results: dict, way: tuple[int, int], mode: str) -> None:
    one, other = results[0, 1][mode], results[way][mode]
    torch.testing.assert_close(torch.tensor(other["losses"]), torch.tensor(one["losses"]), atol=1e-5, rtol=0)
    assert other["live_rank"] == one["live_rank"]
    for ours, theirs in zip(other["gates"], one["gates"], strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert other["weights"].keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for (nll, predictions), (expected_nll, expected) in zip(other["scores"], one["scores"], strict=True):
        assert nll == pytest.approx(expected_nll, abs=1e-4)
        assert predictions == expected


@pytest.mark.parametrize("mode", MODES)
def test_the_comparison_is_of_something(results: dict, mode: str) -> None:
    run = results[0, 1][mode]
    zeros = torch.cat(run["gates"]) == 0
    assert 0 < zeros.sum() < zeros.numel(), "some components are pruned, not all"
    assert run["losses"][0] > run["losses"][15] + 0.1, "something is learned"
    assert run["live_rank"][0] == 4
