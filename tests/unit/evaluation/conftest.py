"""Recorded results of the published scorers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def scored_rows(golden_rows: Path) -> Callable[[str], dict[str, Any]]:
    """Function that reads the scored rows of a task."""
    return lambda task: json.loads((golden_rows / f"{task}.json").read_text(encoding="utf-8"))
