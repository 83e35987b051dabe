"""`codyra NAME ...` (`python -m codyra_llm.cli NAME ...`): what scripts/NAME.py does, wherever it is installed."""

import sys
from importlib import import_module

from codyra_llm.command import main
from codyra_llm.errors import UserError

COMMANDS = ("train", "evaluate", "judge", "chat", "prepare", "plan", "score", "ledger", "materialize")


def run() -> None:
    """Starts the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"codyra {name}", *sys.argv[2:]]
        main(import_module(f"codyra_llm.cli.{name}").command)
    elif name in ("-h", "--help"):
        print("codyra COMMAND --help says what a command takes:\n")
        for each in COMMANDS:
            summary = str(import_module(f"codyra_llm.cli.{each}").__doc__).split("\n")[0]
            print(f"  {each:12} {summary}")
    else:
        main(lambda: _unknown(name))


def _unknown(name: str) -> None:
    raise UserError(f"command line: there is no command {name}; there are {', '.join(COMMANDS)}")


if __name__ == "__main__":
    run()
