"""Shows, verifies and compares ledgers; exports adapters from a ledger and imports them into one.

    python scripts/ledger.py show runs/x/ledger
    python scripts/ledger.py verify runs/x/ledger                         # every file, and the base model's hash
    python scripts/ledger.py diff runs/x/ledger runs/y/ledger
    python scripts/ledger.py export runs/x/ledger --output_dir adapters/x         # one PEFT adapter against the base
    python scripts/ledger.py export runs/x/ledger --output_dir adapters/fomc --only FOMC --rank 16
    python scripts/ledger.py append runs/x/ledger --adapter DIR --task NAME       # a LoRA adapter that PEFT trained

materialize.py makes models.
"""

import argparse
import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError
from codyra_llm.files import expand
from codyra_llm.ledger.selection import add_selection, read_selection

ACTIONS = {
    "show": "what the ledger holds",
    "verify": "whether every file, and the base model, is what it was",
    "diff": "how two ledgers differ",
    "export": "entries as one adapter in PEFT's format",
    "append": "an adapter in PEFT's format as a new entry",
}


def make_parser() -> Parser:
    """Returns the parser of the command line: an action and its ledger."""
    parser = Parser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what in ACTIONS.items():
        action = actions.add_parser(name, help=what)
        action.add_argument("ledger", type=Path, help="folder `ledger` of a run")
        if name == "diff":
            action.add_argument("other", type=Path, help="the ledger to compare with")
        if name == "export":
            action.add_argument("--output_dir", type=Path, required=True, help="the new adapter's folder")
            add_selection(action)
            action.add_argument("--only", metavar="TASK", help="this entry alone; it belongs to what came before it")
            action.add_argument("--rank", type=int, metavar="N", help="pad every projection to this rank")
        if name == "append":
            action.add_argument("--adapter", type=Path, required=True, help="folder of a LoRA adapter in PEFT's format")
            action.add_argument("--task", required=True, help="what the new entry is called")
        if name in ("verify", "append"):
            action.add_argument(
                "--base", metavar="NAME", help="where the base model is (default: what the run called it)"
            )
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Returns the options.

    Raises:
        UserError: options are incompatible.
    """
    options = make_parser().parse_args(arguments)
    if options.action == "export" and options.only and (options.upto or options.without or options.scale):
        raise UserError("--only: stands alone; leave out --upto, --without and --scale, which say what a sum is of")
    return options


def command() -> None:
    """Reads the command line and carries out its action."""
    options = parse_arguments(sys.argv[1:])
    folder = expand(options.ledger)
    from codyra_llm.ledger.describe import (
        compare,
        describe,
    )  # after the command line, so that mistakes are reported at once
    from codyra_llm.ledger.entry import OF_ONE_TASK
    from codyra_llm.ledger.ledger import read_ledger
    from codyra_llm.ledger.materialize import check_fit
    from codyra_llm.ledger.peft_io import append_adapter, export_sum

    if options.action == "export":
        ledger, shares = read_selection(folder, options)
        if options.only:
            shares = {ledger.entries[ledger.position(options.only)].name: 1.0}
        belongs = OF_ONE_TASK if options.only else None
        largest = export_sum(folder, ledger, shares, expand(options.output_dir), options.rank, belongs)
        print(f"{options.output_dir}: {', '.join(shares)} as one adapter, rank {largest}")
        return
    ledger = read_ledger(folder)
    if options.action == "show":
        print(describe(ledger))
    elif options.action == "verify":
        check_fit(folder, ledger, options.base)
        print(
            f"{folder}: {len(ledger.entries)} entries, all as they were written; {ledger.base_model.name} is their base"
        )
    elif options.action == "diff":
        other = expand(options.other)
        print(compare(folder, ledger, other, read_ledger(other)))
    else:
        entry = append_adapter(folder, ledger, expand(options.adapter), options.task, options.base)
        print(f"{folder / entry.name}: {entry.components} components in {entry.projections} projections")
