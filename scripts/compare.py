"""Compares methods at an equal budget: runs a grid of methods, orders and seeds, and makes a table and a picture of it.

python scripts/compare.py --help
"""

from codyra_llm.cli.compare import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
