"""Progress output: a bar on a terminal; in a file or a SLURM log, a plain line at intervals."""

import sys
from typing import Any

from tqdm import tqdm

LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left{postfix}"
SECONDS = 30  # between lines


def progress_bar(doing: str, unit: str, total: int | None, done: int, shown: bool, leave: bool = True) -> Any:
    """Returns a tqdm bar.

    Args:
        doing: text before the bar.
        unit: name of what is counted.
        total: number of units.
        done: number of units done before this start.
        shown: whether there is output; False on all ranks but 0.
        leave: whether a full bar stays on a terminal.
    """
    how: dict[str, Any] = {"total": total, "initial": done, "desc": doing, "unit": unit, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(**how, leave=leave)
    return tqdm(**how, leave=False, mininterval=SECONDS, delay=SECONDS, bar_format=LINE, file=_Lines())


class _Lines:
    """A stream that prints each update of tqdm as a separate line."""

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Does nothing: `write` flushes every line."""
