"""Compares methods at an equal budget: runs a grid of methods, orders and seeds, and makes a table and a picture of it.

    codyra compare --config compare_nano --methods lora seqlora codyra replay --seeds 0 1
    codyra compare --config compare_nano --methods lora codyra --orders order1 order2 --sweep learning_rate
    codyra launch -n 2 -- compare --config configs/compare_nano.yaml --output_dir runs/compare

The configuration is a run's, with a section `compare` for what its runs differ in; codyra_llm/config/grid.py describes
it. Every run has a folder of its own in output_dir and resumes there; finished ones are read. Left behind are
comparison.md, .csv, .json and .tex, and forgetting.png: forgetting against learning, a curve for each method.

--sweep gives each variant the best of the same values of a setting, by the loss after the last task on rows carved from
train: `learning_rate` alone tries half, once and twice the configuration's.

--write_runs runs nothing, and leaves a configuration of each run in output_dir/runs, for `codyra train` or an array of
SLURM; the same command without it then reads what they have finished.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from codyra_llm.command import Parser
from codyra_llm.config import SettingsParser, overrides_of, resolve_path
from codyra_llm.config.base import method_names
from codyra_llm.config.grid import Grid, read_grid, write_runs
from codyra_llm.errors import UserError

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig

OWN = ("methods", "seeds", "orders", "sweep", "line", "write_runs")
OF_ONE_RUN = {"method": "--methods", "seed": "--seeds", "order": "--orders"}
FACTORS = (0.5, 1.0, 2.0)


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = SettingsParser(__doc__)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="variants of the configuration, or methods")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of each method")
    parser.add_argument("--orders", nargs="+", metavar="NAME", help="orders of the task file, or A,B (tasks)")
    parser.add_argument("--line", metavar="NAME", help="the variant whose curve is the line to beat (default: lora)")
    parser.add_argument("--sweep", metavar="SETTING[=A,B]", help="setting that is chosen for each variant")
    parser.add_argument("--write_runs", action="store_true", help="leave the runs' configurations, and run nothing")
    return parser


def parse_arguments(arguments: list[str]) -> "tuple[RunConfig, Grid, bool]":
    """Returns the base configuration and the grid of a command line, and whether only configurations are written."""
    options = make_parser().parse_args(arguments)
    if not options.config:
        raise UserError("command line: --config is needed: a configuration, with a section `compare` or without")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in ("methods", "seeds", "orders", "line")}
    overrides = overrides_of({name: value for name, value in vars(options).items() if name not in OWN})
    for name, own in OF_ONE_RUN.items():
        if name in overrides:
            raise UserError(f"command line: --{name} is for a single run; a comparison takes {own}")
    if options.sweep:
        chosen["sweep"] = _sweep(options, overrides)
    if options.sweep and options.write_runs:
        raise UserError(
            "command line: --write_runs needs settings that are known; leave --sweep out, and give a variant "
            "what an earlier sweep has chosen for it"
        )
    return *read_grid(options.config, overrides, chosen), options.write_runs


def _sweep(options: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, list[float]]:
    from codyra_llm.config.schema import config_fields  # after the command line, so that mistakes are reported at once

    name, _, values = options.sweep.partition("=")
    fields = [known for known, _ in config_fields()]
    found = [known for known in fields if name in (known, known.rpartition(".")[2])]
    if len(found) > 1:  # methods have settings of the same name as the run; they are given as section.field
        found = [known for known in found if known.partition(".")[0] not in method_names()]
    if len(found) != 1:
        raise UserError(f"--sweep {name}: names {len(found)} settings; give one as section.field")
    try:
        given = [float(value) for value in values.split(",")] if values else []
    except ValueError:
        raise UserError(f"--sweep {options.sweep}: {values} are not numbers; give {name}=A,B,C") from None
    if not given:
        base, _ = read_grid(options.config, overrides, {})
        section, _, field = found[0].partition(".")
        value = getattr(getattr(base, section), field) if field else getattr(base, section)
        if not isinstance(value, int | float):
            raise UserError(f"--sweep {name}: has no number to begin with; give {name}=A,B,C")
        given = [factor * value for factor in FACTORS]
    return {found[0]: given}


def command() -> None:
    """Reads the command line and runs the comparison, or writes the configurations of its runs."""
    base, grid, to_write = parse_arguments(sys.argv[1:])
    if to_write:
        from codyra_llm.data.stream import check_same_tasks

        check_same_tasks(resolve_path(base.task_file), grid.orders)
        folder, count = write_runs(base, grid)
        print(
            f"{count} configurations are in {folder}; each is a run of `codyra train`, and so is each index of\n"
            f"RUNS={folder} sbatch --array=1-{count} scripts/slurm/compare_array.sbatch"
        )
        return
    from codyra_llm.workflows.compare import compare

    compare(base, grid)
