"""Recorded results of the published scorers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def scored_rows(golden_rows: Path) -> Callable[[str], dict[str, Any]]:
    """Reads the scored rows of one task."""
    return lambda task: json.loads((golden_rows / f"{task}.json").read_text(encoding="utf-8"))
