"""Scores a saved model without training: on the tasks of a configuration, on suites of general ability, or a whole run.

python scripts/evaluate.py --help
"""

from codyra_llm.cli.evaluate import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
