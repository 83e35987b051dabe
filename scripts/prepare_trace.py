"""Checks a downloaded copy of TRACE and, on request, writes one with a validation split of clean train rows.

python scripts/prepare_trace.py --help
"""

from codyra_llm.cli.prepare import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
