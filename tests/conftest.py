"""Shared by all tests: where the reference data lies, and small real models."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of numbers produced by official implementations; tests that need it skip where it is absent."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no oracle to compare with")
    return folder


@pytest.fixture(scope="session")
def trace_500() -> Path:
    """The real TRACE-500 data; tests that need it skip where it is absent."""
    folder = SHARED / "data" / "trace-500"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no real TRACE data to test with")
    return folder
