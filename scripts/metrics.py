"""Prints every metric of a run's matrix, with its definition.

python scripts/metrics.py --help
"""

from codyra_llm.cli.metrics import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
