"""Scores stored predictions in every variant, or computes every metric of an accuracy matrix.

python scripts/score.py --help
"""

from codyra_llm.cli.score import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
