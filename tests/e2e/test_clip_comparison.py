"""On pictures, CoDyRA forgets less than LoRA at equal learning, over two seeds."""

from pathlib import Path

from codyra_llm.config.grid import read_grid
from codyra_llm.workflows.compare import compare


def test_codyra_forgets_less_at_equal_learning(tmp_path: Path) -> None:
    """Compared with LoRA merged at the scale that learns as much; 95 % confidence over two seeds and all pictures."""
    chosen = {
        "methods": ["lora", "codyra"],
        "seeds": [0, 1],
        "orders": ["short"],
        "curves": {"lora": {"merge.scale": [0.7]}},
    }
    base, grid = read_grid("compare_clip", {"output_dir": str(tmp_path)}, chosen)
    contestants = {each.name: each for each in compare(base, grid)}
    assert all(each.runs == 2 and not each.failed for each in contestants.values())
    codyra, shrunk = contestants["codyra"], contestants["lora+scale=0.7"]
    assert codyra.excess and codyra.excess.high < 0
    assert shrunk.difference["nll_learned"].low > 0 > shrunk.difference["nll_forgotten"].high
    rank = codyra.mean["rank"]
    assert rank and rank < 16
