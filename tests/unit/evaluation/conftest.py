"""Recorded results of the published scorers and matrix code, in a folder `shared/golden` beside the repository."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict]:
    def read(name: str) -> dict:
        path = GOLDEN / name
        if not path.exists():
            pytest.skip(f"no recorded results at {path}")
        return json.loads(path.read_text(encoding="utf-8"))

    return read
