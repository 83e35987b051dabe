"""Compares two models' answers to prompts of yours: win, tie and lose by a judge, and proxies that need none.

python scripts/judge.py --help
"""

from codyra_llm.cli.judge import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
