"""Teaches a model a stream of tasks, one after another, and measures what it knows after each.

python scripts/train_trace.py --help
"""

from codyra_llm.cli.train import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
