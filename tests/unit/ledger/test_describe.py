"""The difference between two ledgers, summed or combined otherwise, and ledgers that cannot be compared."""

from pathlib import Path

import pytest
import torch

from codyra_llm.adapter.merging import Deltas
from codyra_llm.errors import UserError
from codyra_llm.ledger.describe import compare, describe
from codyra_llm.ledger.entry import write_entry
from codyra_llm.ledger.ledger import BaseModel, Entry, Ledger

BASE = BaseModel("base", "0" * 64, "float32")


def ledger_of(folder: Path, *entries: Deltas, **options: dict[str, str]) -> Ledger:
    """Writes entries with these updates; returns their ledger."""
    names = [f"{number:02d}-{folder.name}" for number in range(1, len(entries) + 1)]
    files = [write_entry(folder / name, updates, "base") for name, updates in zip(names, entries, strict=True)]
    held = [Entry(name, folder.name, digests, 1, 1, 1.0) for name, digests in zip(names, files, strict=True)]
    return Ledger(BASE, tuple(held), **options)


def update(value: float, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns an update of one projection whose Frobenius norm is |value|."""
    B, A = torch.zeros(outputs, 1), torch.zeros(1, 2)
    B[0, 0], A[0, 0] = value, 1.0
    return B, A


def said(folder: Path, ours: Ledger, theirs: Ledger) -> str:
    return compare(folder / "one", ours, folder / "two", theirs).splitlines()[-1]


def test_models_are_as_far_apart_as_the_sums(tmp_path: Path) -> None:
    ours = ledger_of(tmp_path / "one", {"m": update(3.0)}, {"m": update(2.0), "n": update(4.0)})
    theirs = ledger_of(tmp_path / "two", {"m": update(2.0)})
    assert said(tmp_path, ours, theirs) == "the models are 5 apart; the first is 6.4 from the base model"


def test_combined_ledgers_differ_by_what_is_combined(tmp_path: Path) -> None:
    averaged = {"method": "mean", "settings": {}}
    ours = ledger_of(tmp_path / "one", {"m": update(3.0)}, {"m": update(5.0)}, combined=averaged)
    theirs = ledger_of(tmp_path / "two", {"m": update(1.0)})
    assert said(tmp_path, ours, theirs) == "the models are 3 apart; the first is 4 from the base model"


def test_updates_of_other_shapes_have_no_difference(tmp_path: Path) -> None:
    ours, theirs = (ledger_of(tmp_path / name, {"m": update(1.0, size)}) for name, size in (("one", 3), ("two", 4)))
    with pytest.raises(UserError, match="updates of m differ in shape"):
        said(tmp_path, ours, theirs)


def test_an_entry_that_changes_nothing_says_so() -> None:
    entries = [Entry("01-a", "a", {}, 0, 0, 0.0), Entry("02-b", "b", {}, 1, 2, 1.0)]
    assert describe(Ledger(BASE, tuple(entries))).splitlines()[-1].startswith("01-a: nothing was merged")
    assert "merged" not in describe(Ledger(BASE, tuple(entries[1:])))
