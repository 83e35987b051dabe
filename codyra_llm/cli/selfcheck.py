"""Proves and times everything on this machine, in minutes: kernels, training, generation, speed, memory.

    codyra selfcheck --output_dir selfcheck               # on the GPU where there is one, else on the CPU
    codyra selfcheck --gpu --output_dir selfcheck         # refuses where there is none
    codyra selfcheck --output_dir selfcheck --parts kernels,training
    codyra selfcheck --output_dir selfcheck --into docs/performance.md    # an earlier run's tables, into a page

Writes selfcheck.json, selfcheck.md and the output of each part. Ends with status 1 where a part on correctness failed;
a part that lacks a package or the time is skipped and named. On a CPU shapes are small, and figures of speed mean
nothing: that all parts run is what is shown.
"""

import os
import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError
from codyra_llm.files import expand


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", action="store_true", help="on the GPU (default: where there is one)")
    device.add_argument("--cpu", action="store_true", help="on the CPU, also where there is a GPU")
    parser.add_argument("--output_dir", type=Path, default=Path("selfcheck"), help="default: selfcheck")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--parts", metavar="NAME,...", default="", help="only those whose names begin so")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="run nothing; put earlier tables into a page")
    return parser


def command() -> int:
    """Reads the command line and runs the self-check; returns the exit status."""
    options = make_parser().parse_args(sys.argv[1:])
    if not 0 < options.minutes <= 24 * 60:
        raise UserError(f"--minutes is {options.minutes:g}; it must be above 0 and at most a day")
    folder = expand(options.output_dir)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models and data of the self-check are part of the project
    from codyra_llm.selfcheck import report, run  # after the command line, so that mistakes are reported at once

    if options.into:
        report.put_into(expand(options.into), folder)
        return 0
    names = run.chosen_parts([name.strip() for name in options.parts.split(",") if name.strip()])
    device = run.device_of(options.gpu, options.cpu)
    return run.selfcheck(device, folder, options.minutes, names, ["codyra", "selfcheck", *sys.argv[1:]])
