"""What a ledger holds, whether it is whole, how two differ; adapters out of it and into it.

python scripts/ledger.py --help
"""

from codyra_llm.cli.ledger import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
