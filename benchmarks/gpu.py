"""Checks and times everything on the machine's GPU: `codyra selfcheck`, run from a clone of the repository.

python -m benchmarks.gpu --output_dir selfcheck
"""

from codyra_llm.cli.selfcheck import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
