"""The ranks that a run has kept, as `ranks.csv` in its folder holds them."""

import csv
from pathlib import Path

from codyra_llm.errors import UserError


def read_kept_ranks(
    run: Path, where: str = "", remedy: str = "restore the run's folder"
) -> dict[str, dict[str, float]]:
    """The kept rank of each projection in each task: task -> name of the projection -> rank.

    Args:
        where, remedy: how an error names the file, by default by its path, and what would be right.

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
