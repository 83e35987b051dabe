"""Says whether kept ranks are learned: which part of their variance tasks and projections explain, against noise.

python scripts/probe.py --help
"""

from codyra_llm.cli.probe import command
from codyra_llm.command import main

if __name__ == "__main__":
    main(command)
