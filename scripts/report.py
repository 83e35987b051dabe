"""Makes the page of a run or of a comparison, or one of several runs side by side.

python scripts/report.py --help
"""

from codyra_llm.cli.report import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
