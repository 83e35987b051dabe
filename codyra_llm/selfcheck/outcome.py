"""Input and output of a part of the self-check: its setting, and rows of numbers, some of them with a bound."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # of a table; "passed": whether the row's check has passed


class Skipped(Exception):
    """Raised if a part cannot run; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """The device, the temporary folder and the deadline of the parts.

    Attributes:
        device: cpu or cuda.
        scratch: a folder that all parts share and that is deleted afterwards.
        ends: the deadline of all parts, by `time.monotonic`.
    """

    device: str
    scratch: Path
    ends: float

    @property
    def small(self) -> bool:
        """True on a CPU, where shapes are small: only whether all parts run is checked."""
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds until the deadline of all parts."""
        return self.ends - time.monotonic()


@dataclass
class Outcome:
    """The outcome of a part. `status` is passed, failed or skipped; `kind` is correctness, speed or memory."""

    part: str
    kind: str
    status: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def bounded(what: str, found: float, allowed: float, **more: object) -> Row:
    """Returns a row that has passed if `found` is at most `allowed`; NaN and infinity have not passed."""
    return {"what": what, "found": found, "allowed": allowed, **more, "passed": bool(found <= allowed)}
