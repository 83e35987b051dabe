"""Completes commands and options in a shell: `codyra completion bash`.

codyra completion bash > ~/.local/share/bash-completion/completions/codyra
codyra completion zsh > ~/.zfunc/_codyra                       # a folder of $fpath
"""

import sys
from importlib import import_module

import shtab

from codyra_llm.command import Parser
from codyra_llm.config import SettingsParser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="prints a script for it")
    return parser


def command() -> None:
    """Reads the command line and prints the completion script of the shell."""
    from codyra_llm.cli.__main__ import COMMANDS

    shell = make_parser().parse_args(sys.argv[1:]).shell
    everything = Parser(prog="codyra")
    commands = everything.add_subparsers()
    for name in COMMANDS:
        own: Parser = import_module(f"codyra_llm.cli.{name}").make_parser()
        if isinstance(own, SettingsParser):
            own.add_methods()
        commands.add_parser(name, parents=[own], conflict_handler="resolve", help=name)
    print(shtab.complete(everything, shell))
