"""`codyra NAME ...` (`python -m codyra_llm.cli NAME ...`): what scripts/NAME.py does, wherever it is installed.

`codyra launch -n 8 -- train ...` starts a command on 8 ranks of this machine, by torchrun; for the deepspeed launcher,
`deepspeed $(codyra path train) ...` names the file to start.
"""

import ast
import os
import sys
from importlib import import_module
from pathlib import Path

from codyra_llm.command import Parser, main
from codyra_llm.errors import UserError
from codyra_llm.version import __version__

COMMANDS = (
    "train",
    "evaluate",
    "compare",
    "probe",
    "judge",
    "chat",
    "push",
    "init",
    "prepare",
    "plan",
    "selfcheck",
    "score",
    "report",
    "metrics",
    "ledger",
    "materialize",
    "completion",
)


def run() -> None:
    """Starts the command that the first argument names."""
    # the deepspeed launcher passes this first; LOCAL_RANK has the same value
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    name, *rest = arguments or ["--help"]
    sys.argv = [f"codyra {name}", *rest]
    if name in COMMANDS:
        main(lambda: import_module(f"codyra_llm.cli.{name}").command())
    elif name in OTHERS:
        main(OTHERS[name])
    elif name in ("-h", "--help"):
        main(_help)
    elif name == "--version":
        main(lambda: print(f"codyra_llm {__version__}"))
    else:
        main(lambda: _unknown(name))


def _help() -> None:
    print("codyra COMMAND --help says what a command takes:\n")
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")  # not imported: that takes seconds
        print(f"  {name:12} {str(ast.get_docstring(ast.parse(source))).splitlines()[0]}")
    print("\n  launch       codyra launch -n 8 -- train ...: starts a command on so many ranks of this machine.")
    print("  path         deepspeed $(codyra path train) ...: the file that the deepspeed launcher starts.")
    print("               codyra path slurm: the folder of the batch scripts for SLURM.")


def _path() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in (*COMMANDS, "slurm"):
        raise UserError(f"command line: codyra path takes slurm, or one of {', '.join(COMMANDS)}")
    from codyra_llm.files import shipped  # imports packages that `codyra --help` does not need

    print(shipped("scripts/slurm") if sys.argv[1] == "slurm" else f"{__file__} {sys.argv[1]}")


def _launch() -> None:
    parser = Parser(prog="codyra launch", usage="%(prog)s -n RANKS -- COMMAND ...")
    parser.add_argument("-n", type=int, required=True, metavar="RANKS", help="ranks to start on this machine")
    parser.add_argument("command", nargs="+", help="a command of codyra, and its options")
    options = parser.parse_args(sys.argv[1:])
    if options.command[0] not in COMMANDS:
        _unknown(options.command[0])
    if options.n < 1:
        raise UserError(f"command line: -n is {options.n}; it must be at least 1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.n)]
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "codyra_llm.cli", *options.command])


OTHERS = {"path": _path, "launch": _launch}


def _unknown(name: str) -> None:
    raise UserError(f"command line: there is no command {name}; there are {', '.join([*COMMANDS, *OTHERS])}")


if __name__ == "__main__":
    run()
