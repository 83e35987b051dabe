"""Reads the ranks after pruning of a run, from `ranks.csv` in its folder."""

import csv
from pathlib import Path

from codyra_llm.errors import UserError


def read_kept_ranks(
    run: Path, where: str = "", remedy: str = "restore the run's folder"
) -> dict[str, dict[str, float]]:
    """Returns the kept rank of each projection in each task: task -> name of the projection -> rank.

    Args:
        run: the run folder.
        where: name of the file in the error message; by default its path.
        remedy: end of the error message: what to do.

    Raises:
        UserError: the folder's ranks.csv is missing or damaged.
    """
    path = run / "ranks.csv"
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["task"], {})[row["module"]] = float(row["rank"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{where or f'{path}:'} cannot be read: {error}; {remedy}") from None
    return found
