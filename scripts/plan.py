"""Estimates a run before any GPU is rented: memory, traffic, steps, sizes, and the ZeRO stages and settings that fit.

python scripts/plan.py --help
"""

from codyra_llm.cli.plan import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
