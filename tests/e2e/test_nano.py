"""Expected results of a comparison hold on nano with two seeds; and nano's files match their generators."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from codyra_llm.config.grid import read_grid
from codyra_llm.data.stream import TaskStream
from codyra_llm.results.comparison import Contestant
from codyra_llm.workflows.compare import compare
from tests.conftest import REPOSITORY

NANO = REPOSITORY / "tasks" / "nano"
METHODS = ["lora", "seqlora", "codyra", "codyra_protected", "replay-all", "routed"]


@pytest.fixture(scope="module")
def contestants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contestant]:
    """Contestants of a comparison of six methods on four tasks, with two seeds."""
    chosen = {"methods": METHODS, "seeds": [0, 1], "orders": ["short"], "curves": {"lora": {"merge.scale": [0.5]}}}
    output = tmp_path_factory.mktemp("nano")
    base, grid = read_grid(
        "compare_nano", {"output_dir": str(output), "general.suites": [], "evaluate.divergence": False}, chosen
    )
    return {each.name: each for each in compare(base, grid)}


def mean(contestant: Contestant, name: str) -> float:
    value = contestant.mean[name]
    assert value is not None
    return value


def test_every_run_has_finished(contestants: dict[str, Contestant]) -> None:
    assert set(contestants) == {*METHODS, "lora+scale=0.5"}
    assert all(each.runs == 2 and not each.failed for each in contestants.values())


def test_what_is_trained_is_learned_and_forgotten(contestants: dict[str, Contestant]) -> None:
    lora, half = contestants["lora"], contestants["lora+scale=0.5"]
    assert mean(lora, "nll_forgotten") > 0.3
    assert half.difference["nll_learned"].low > 0, "half of the update is less learned"
    assert half.difference["nll_forgotten"].high < 0, "and less forgotten"


def test_replay_of_all_rows_forgets_less(contestants: dict[str, Contestant]) -> None:
    assert contestants["replay-all"].difference["nll_forgotten"].high < 0
    assert contestants["replay-all"].difference["nll_final"].high < 0


def test_adapters_that_are_routed_forget_nothing(contestants: dict[str, Contestant]) -> None:
    assert mean(contestants["routed"], "nll_forgotten") == pytest.approx(0.0, abs=1e-6)


def test_protected_branches_forget_less_at_equal_learning(contestants: dict[str, Contestant]) -> None:
    """Compared with LoRA merged at the scale that learns as much; 95 % confidence over two seeds and all rows."""
    excess = contestants["codyra_protected"].excess
    assert excess and excess.high < 0
    forgotten = contestants["codyra_protected"].difference["nll_forgotten"]
    assert forgotten.high < contestants["seqlora"].difference["nll_forgotten"].low


def test_codyra_forgets_less_than_one_continued_adapter(contestants: dict[str, Contestant]) -> None:
    codyra, seqlora = (contestants[name].difference["nll_forgotten"] for name in ("codyra", "seqlora"))
    assert codyra.high < seqlora.low
    assert mean(contestants["codyra"], "rank") < 8 == mean(contestants["seqlora"], "rank")


def test_rows_are_those_of_the_generator(tmp_path: Path) -> None:
    subprocess.run([sys.executable, NANO / "rows.py", "--output_dir", tmp_path], check=True)
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]:
        assert path.read_bytes() == (NANO / path.relative_to(tmp_path)).read_bytes(), path


def test_no_test_row_is_trained_on_and_no_rule_is_in_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(NANO))
    texts = runpy.run_path(str(NANO / "world.py"))["texts"]("pretraining")
    world = "\n".join(next(texts) for _ in range(20000))
    for task in TaskStream.load(NANO / "nano.yaml", NANO / "rows"):
        trained = {row["prompt"] for row in task.train}
        assert not trained & {row["prompt"] for row in task.test}
        assert not any(row["prompt"] in world for row in task.test)
    assert not any(word in world for word in ("famos", "garstig", "toll on", "vault", "Motion", "Lead:", "because"))


def test_the_model_is_small() -> None:
    folder = NANO / "model"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
