"""What a run needs, before any GPU is rented: memory, traffic, steps, sizes, and which way of running fits.

python scripts/plan.py --help
"""

from codyra_llm.cli.plan import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
