"""What a part of the self-check is given and what it gives: rows of figures, some of them with a bound."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # of a table; "passed" says whether what the row shows is as it should be


class Skipped(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: cpu or cuda.
        scratch: a folder that all parts share and that is deleted afterwards.
        ends: when all parts must be done, by `time.monotonic`.
    """

    device: str
    scratch: Path
    ends: float

    @property
    def small(self) -> bool:
        """Whether shapes are small: on a CPU, where only that all parts run is of interest."""
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds until all parts must be done."""
        return self.ends - time.monotonic()


@dataclass
class Outcome:
    """What became of a part. `status` is passed, failed or skipped; `kind` is correctness, speed or memory."""

    part: str
    kind: str
    status: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def bounded(what: str, found: float, allowed: float, **more: object) -> Row:
    """A row that has passed where `found` is at most `allowed`; a value that is not finite has not."""
    return {"what": what, "found": found, "allowed": allowed, **more, "passed": bool(found <= allowed)}
