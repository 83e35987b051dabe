"""Checks that any input ends with a correct result or with a one-line error."""

import os
import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from codyra_llm.errors import UserError

LONGEST = 2000  # characters of a line
SECONDS = 30
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))

thorough = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,  # the same examples in each run of the tests; FUZZ_EXAMPLES=5000 draws new ones
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


few = settings(thorough, max_examples=EXAMPLES or 8)  # for tests in which each example starts a run


@contextmanager
def limited() -> Iterator[None]:
    """Raises TimeoutError if the block takes longer than SECONDS."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(act: Callable[[], Any], secret: str = "") -> tuple[Any, str | None]:
    """Runs `act`; asserts that a UserError is one line, short, printable and without `secret`.

    Returns:
        (result of `act`, None), or (None, the line of its UserError). Other exceptions are not caught.
    """
    try:
        with limited():
            return act(), None
    except UserError as error:
        line = str(error)
        assert len(line) <= LONGEST, f"{len(line)} characters: {line[:300]}"
        assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in line), repr(line)
        assert not secret or secret not in line
        return None, line


def tree(folder: Path) -> dict[str, bytes]:
    """Returns {relative path: content} of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
