"""Shows, verifies and compares ledgers; exports adapters from a ledger and imports them into one.

python scripts/ledger.py --help
"""

from codyra_llm.cli.ledger import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
