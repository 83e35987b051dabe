"""Recorded results of the published scorers and matrix code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def golden(golden: Path) -> Callable[[str], dict]:
    """Reads one file of the oracle folder."""
    return lambda name: json.loads((golden / name).read_text(encoding="utf-8"))
