"""Descriptions of ledgers as text: the entries of one, and the differences between two."""

import math
from collections.abc import Sequence
from pathlib import Path

from codyra_llm.adapter.merging import Factors, norm_of_product, stacked
from codyra_llm.errors import UserError
from codyra_llm.ledger.combination import combination
from codyra_llm.ledger.entry import Combine, drift, summed
from codyra_llm.ledger.ledger import Ledger
from codyra_llm.text import align


def describe(ledger: Ledger) -> str:
    """Returns a text with the base model and, for each entry, its size and the scores right after it."""
    tasks = list(dict.fromkeys(task for entry in ledger.entries for task in entry.scores))
    rows = [["entry", "projections", "components", "norm", *tasks]]
    for entry in ledger.entries:
        scores = [f"{entry.scores[task]:.1f}" if task in entry.scores else "" for task in tasks]
        rows.append([entry.name, str(entry.projections), str(entry.components), f"{entry.norm:.3f}", *scores])
    base = ledger.base_model
    head = f"{base.name}, {base.dtype}, weights {base.sha256[:12]}; state {ledger.state[:12]}"
    return "\n".join(filter(None, [head, align(rows), ledger.remark([entry.name for entry in ledger.entries])]))


def compare(first: Path, ours: Ledger, second: Path, theirs: Ledger) -> str:
    """Returns a text that compares two ledgers entry by entry, with the distance between the resulting models.

    Args:
        first, second: the folders of the ledgers.
        ours, theirs: the first and the second ledger.

    Raises:
        UserError: they have different base models.
    """
    if ours.base_model.sha256 != theirs.base_model.sha256:
        bases = " and ".join(f"{ledger.base_model.name} ({ledger.base_model.sha256[:12]})" for ledger in (ours, theirs))
        raise UserError(f"the ledgers begin with different models, {bases}; only those of one model can be compared")
    rows = [["entry", "norm", "norm", ""]]
    mine, yours = ({entry.name: entry for entry in ledger.entries} for ledger in (ours, theirs))
    same = {name for name in mine if name in yours and mine[name].sha256 == yours[name].sha256}
    for name in dict.fromkeys([*mine, *yours]):
        one, other = mine.get(name), yours.get(name)
        if one and other:
            remark = "same" if name in same else "differs"
        else:
            remark = f"only in the {'first' if one else 'second'}"
        rows.append([name, *(f"{entry.norm:.3f}" if entry else "" for entry in (one, other)), remark])
    ours_by, theirs_by = combination(ours.combined, str(first)), combination(theirs.combined, str(second))
    common = () if ours_by or theirs_by else same  # entries that both sum cancel
    folders = [first / name for name in mine if name not in common]
    count = len(folders)
    folders += [second / name for name in yours if name not in common]

    def difference(updates: Sequence[Factors | None]) -> Factors:
        one, other = _update(updates[:count], ours_by), _update(updates[count:], theirs_by)
        return stacked([one, other and (-other[0], other[1])])

    apart = math.hypot(*(norm_of_product(*factors) for _, factors in summed(folders, combine=difference)))
    size = math.hypot(*drift([first / name for name in mine], ours_by).values())
    return f"{align(rows)}\nthe models are {apart:.3g} apart; the first is {size:.3g} from the base model"


def _update(updates: Sequence[Factors | None], combine: Combine | None) -> Factors | None:
    """Combines the updates of one projection by a ledger's entries; None if no entry changes it."""
    return (combine or stacked)(updates) if any(updates) else None
