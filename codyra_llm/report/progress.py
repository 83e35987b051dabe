"""Progress: a bar on a terminal; in a file or a SLURM log a plain line now and then."""

import sys
from typing import Any

from tqdm import tqdm

LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left{postfix}"
SECONDS = 30  # between lines


def progress_bar(doing: str, unit: str, total: int | None, done: int, shown: bool, leave: bool = True) -> Any:
    """A tqdm bar.

    Args:
        doing: what stands before it. done: of `total`, before this start. shown: false on all ranks but 0. leave: on a
            terminal, once it is full.
    """
    how: dict[str, Any] = {"total": total, "initial": done, "desc": doing, "unit": unit, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(**how, leave=leave)
    return tqdm(**how, leave=False, mininterval=SECONDS, delay=SECONDS, bar_format=LINE, file=_Lines())


class _Lines:
    """Makes a line of whatever tqdm would write over the last one."""

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Nothing: every line is flushed."""
