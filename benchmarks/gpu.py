"""Proves and times everything on the GPU at hand: `codyra selfcheck`, from a clone.

python -m benchmarks.gpu --output_dir selfcheck
"""

from codyra_llm.cli.selfcheck import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
