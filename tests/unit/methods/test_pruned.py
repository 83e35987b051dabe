"""The controls that drop components: a given share, or as many as another run dropped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.errors import UserError
from tests.models import tiny_model
from tests.oracles import learn, method_of


def test_pruned_drops_as_many_as_it_says() -> None:
    for by in ("random", "magnitude"):
        method: Any = method_of("pruned", **{"pruned.keep": 0.25, "pruned.by": by})
        updates = learn(method, tiny_model(), "first")
        assert {len(A) for _, A in updates.values()} == {1}
    draws = [
        method_of("pruned", seed=seed)._worth("m", torch.zeros(2, 4), torch.zeros(4, 2)).tolist()  # type: ignore[attr-defined]
        for seed in (1, 2, 1)
    ]
    assert draws[0] == draws[2] != draws[1]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Folder of a run that kept one component less of each projection in its second task than in its first."""
    lines = ["task,module,rank,initial_rank,update_norm,bound,cumulative_norm"]
    names = [name for name, module in tiny_model().named_modules() if name.endswith("_proj")]
    for number, task in enumerate(("first", "second")):
        lines += [f"{task},{name},{at % 3 + 1 - number},4,0,0,0" for at, name in enumerate(names)]
    (tmp_path / "ranks.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("by", ["random", "magnitude", "start"])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_ranks_of_another_run(kept: Path, by: str, shift: int) -> None:
    settings = {"pruned.by": by, "pruned.shift": shift, "pruned.ranks_of": str(kept)}
    method: Any = method_of("pruned", **settings)
    method.check_run(0)
    least = 1 if by == "start" else 0  # a branch of rank 0 could not train
    for number, task in enumerate(("first", "second")):
        method.check(task, 10)
        updates = learn(method, tiny_model(), task)
        less = (number + shift) % 2
        assert [len(A) for _, A in updates.values()] == [max(least, at % 3 + 1 - less) for at in range(len(updates))]


def test_a_branch_that_starts_with_less_trains_nothing_else(kept: Path) -> None:
    method, model = method_of("pruned", **{"pruned.by": "start", "pruned.keep": 0.5}), tiny_model()
    ready = method.prepare(model, "first", 10)
    assert {layer.rank for _, layer in gated_layers(model)} == {2}
    trained = sum(p.numel() for group in ready.optimizer.param_groups for p in group["params"])
    assert trained == sum(layer.A.numel() + layer.B.numel() for _, layer in gated_layers(model))


def test_ranks_that_are_not_there(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pruned.ranks_of .*nowhere: its ranks.csv cannot be read"):
        method_of("pruned", **{"pruned.ranks_of": str(tmp_path / "nowhere")}).check_run(0)
    with pytest.raises(UserError, match="has no ranks of task third"):
        method_of("pruned", **{"pruned.ranks_of": str(kept)}).check("third", 10)
    (kept / "ranks.csv").write_text("task,module\nfirst,m\n")
    with pytest.raises(UserError, match="cannot be read"):
        method_of("pruned", **{"pruned.ranks_of": str(kept)}).check_run(0)
