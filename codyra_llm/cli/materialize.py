"""Makes a model from a ledger: the base model plus all entries, the first ones, all but some, or shares of them.

    python scripts/materialize.py --ledger runs/x/ledger --output_dir models/x
    python scripts/materialize.py --ledger runs/x/ledger --output_dir models/five --upto 5
    python scripts/materialize.py --ledger runs/x/ledger --output_dir models/without --without FOMC,Py150
    python scripts/materialize.py --ledger runs/x/ledger --output_dir models/half --scale NumGLUE-cm=0.5
    python scripts/materialize.py --ledger runs/x/ledger --output_dir models/small --quantize nf4

The result is an ordinary HF folder. Without a selection, and quantized as the run's base was (--quantize), it has the
bits of the model that the run saved.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.files import expand
from codyra_llm.ledger.selection import add_selection, read_selection


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ledger", type=Path, required=True, help="folder `ledger` of a run")
    parser.add_argument("--output_dir", type=Path, required=True, help="the new model's folder")
    add_selection(parser)
    parser.add_argument("--base", metavar="NAME", help="where the base model is (default: what the run called it)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the run's")
    parser.add_argument("--quantize", choices=["nf4", "int8"], help="the projections in 4 or 8 bits (bitsandbytes)")
    return parser


def command() -> None:
    """Reads the command line and writes the model."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.ledger.materialize import (
        materialize,
    )  # after the command line, so that mistakes are reported at once

    folder, output = expand(options.ledger), expand(options.output_dir)
    ledger, shares = read_selection(folder, options)
    materialize(folder, ledger, shares, output, options.base, options.dtype, options.quantize)
    print(f"{output}: {ledger.base_model.name} plus {', '.join(shares) or 'nothing'}")
    if remark := ledger.remark(shares):
        print(remark)
