"""Makes a model from a ledger: the base model plus all entries, the first ones, all but some, or shares of them.

python scripts/materialize.py --help
"""

from codyra_llm.cli.materialize import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
