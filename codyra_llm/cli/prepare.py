"""Checks a downloaded copy of TRACE and, on request, writes one with a validation split of clean train rows.

python scripts/prepare_trace.py --data_dir DATA [--tasks FOMC,Py150] [--validation_size N --output_dir OUT] [--json]
"""

import sys

from codyra_llm.data.prepare import make_parser, prepare

__all__ = ["command", "make_parser"]


def command() -> int:
    """Reads the command line and checks."""
    return prepare(sys.argv[1:])
