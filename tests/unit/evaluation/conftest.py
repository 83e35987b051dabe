"""Recorded results of the published scorers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def scored_rows(golden_rows: Path) -> Callable[[str], dict]:
    """Reads the scored rows of one task."""
    return lambda task: json.loads((golden_rows / f"{task}.json").read_text(encoding="utf-8"))
