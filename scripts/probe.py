"""Looks into finished runs: is the rank learned, where should a branch be, and what predicts forgetting?

python scripts/probe.py --help
"""

from codyra_llm.cli.probe import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
