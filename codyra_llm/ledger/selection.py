"""Selection of entries of a ledger and of their shares: --upto, --without and --scale of the commands."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codyra_llm.errors import UserError

if TYPE_CHECKING:
    from codyra_llm.ledger.ledger import Ledger


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_selection` reads."""
    parser.add_argument("--upto", metavar="N", help="the first N entries, or all up to this task")
    parser.add_argument("--without", metavar="TASKS", default="", help="entries to leave out: FOMC,Py150")
    parser.add_argument("--scale", metavar="TASK=SHARE", default="", help="shares of entries: FOMC=0.5,Py150=0.8")


def read_selection(folder: Path, options: argparse.Namespace) -> tuple["Ledger", dict[str, float]]:
    """Returns a ledger and the {entry: share} that a command line selects.

    Raises:
        UserError: as `read_ledger` and `select`, or a share is not a number.
    """
    from codyra_llm.ledger.ledger import read_ledger  # takes seconds to import; mistakes are reported before that

    scales = {}
    for part in filter(None, options.scale.split(",")):
        name, _, share = part.partition("=")
        try:
            scales[name.strip()] = float(share)
        except ValueError:
            raise UserError(f"--scale {part}: write TASK=SHARE, like FOMC=0.5") from None
    ledger = read_ledger(folder)
    without = [name.strip() for name in filter(None, options.without.split(","))]
    return ledger, select(ledger, options.upto, without, scales)


def select(
    ledger: "Ledger", upto: str | None = None, without: Sequence[str] = (), scales: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Returns {entry: its share} of the selected entries, in order; entries with share 0 are left out.

    Args:
        ledger: the ledger; entries are named as for `Ledger.position`.
        upto: the last entry, or the number of entries; None: all.
        without: entries to leave out.
        scales: shares other than 1.

    Raises:
        UserError: there is no such entry, or there are several; a share is not finite, or its entry not selected.
    """
    count = len(ledger.entries)
    if upto is not None:
        count = int(upto[:9]) if upto.isdecimal() else 1 + ledger.position(upto)
        if count > len(ledger.entries):
            raise UserError(f"there is no entry {count}; the ledger has {len(ledger.entries)}")
    shares = dict.fromkeys((entry.name for entry in ledger.entries[:count]), 1.0)
    for name, share in [*(scales or {}).items(), *((name, 0.0) for name in without)]:
        entry = ledger.entries[ledger.position(name)].name
        if not math.isfinite(share):
            raise UserError(f"the share of {name} is {share}; it must be a finite number")
        if entry not in shares:
            raise UserError(f"{entry} comes after the entries that are wanted; leave one of the two out")
        shares[entry] = share
    return {name: share for name, share in shares.items() if share}
