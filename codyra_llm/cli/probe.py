"""Looks into finished runs: is the rank learned, where should a branch be, and what predicts forgetting?

    codyra probe ranks runs/compare_nano/codyra/order1-seed*
    codyra probe placement runs/placement_nano
    codyra probe predictors runs/compare_nano runs/placement_nano --output predictors

ranks: which part of the variance of kept ranks tasks and projections explain, against noise. The runs are of one
configuration and differ in nothing but the seed. Variance components are those of a two-way analysis with random
effects: what runs with other seeds keep in the same projection and task is noise. The picture is the mean rank of each
task by kind of projection and by layer.

placement: of a comparison whose variants have branches in different projections (configs/placement_nano.yaml), what
each has learned and forgotten at each rank; the pictures show it task by task, at the rank that ends lowest.

predictors: over all runs of some comparisons, the rank correlation of norms, rank, bound, drift and divergences with
what was forgotten; the picture has a panel for each.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError, reason

ACTIONS = {
    "ranks": ("RUN", "folders of finished runs"),
    "placement": ("COMPARISON", "the folder of a comparison"),
    "predictors": ("COMPARISON", "folders of comparisons"),
}


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    for name, (what, help) in ACTIONS.items():
        action = actions.add_parser(name, help=help)
        action.add_argument("folders", nargs=1 if name == "placement" else "+", type=Path, metavar=what, help=help)
        action.add_argument("--output", type=Path, default=Path(name), help="the picture, without its ending")
    return parser


def command() -> None:
    """Reads the runs, prints the table and draws the pictures."""
    options = make_parser().parse_args(sys.argv[1:])
    table, draw = {"ranks": _ranks, "placement": _placement, "predictors": _predictors}[options.action](options)
    print(table)
    try:
        pictures = draw()
    except OSError as error:
        raise UserError(f"--output {options.output}: cannot be written: {reason(error)}") from None
    print("\n" + "\n".join(map(str, pictures)))


Found = tuple[str, Callable[[], list[Path]]]  # the table, and a function that draws the pictures


def _ranks(options: argparse.Namespace) -> Found:
    from codyra_llm.report.rank_variance import plot_kept_ranks, shares_table  # after the command line
    from codyra_llm.results.rank_variance import read_ranks, variance_shares

    kept = read_ranks(options.folders)
    shares = variance_shares(kept.ranks)
    return shares_table(shares), lambda: [plot_kept_ranks(kept, shares, _png(options.output))]


def _placement(options: argparse.Namespace) -> Found:
    from codyra_llm.report.placement import placement_table, plot_placements, read_placements

    placements = read_placements(options.folders[0])
    return placement_table(placements), lambda: plot_placements(placements, options.output)


def _predictors(options: argparse.Namespace) -> Found:
    from codyra_llm.report.predictors import plot_predictors, predictors_table, read_runs
    from codyra_llm.results.predictors import FEWEST, predictors

    runs = read_runs(options.folders)
    found = predictors(runs)
    if not found and len(runs) < FEWEST:
        raise UserError(f"{options.folders[0]}: {len(runs)} runs; a correlation takes {FEWEST} at least")
    if not found:
        raise UserError(
            f"{options.folders[0]}: of {len(runs)} runs, fewer than {FEWEST} have forgotten something measured, or all "
            "alike; a correlation takes runs of two tasks at least that differ"
        )
    return predictors_table(found, len(runs)), lambda: [plot_predictors(runs, found, _png(options.output))]


def _png(output: Path) -> Path:
    return output.with_name(f"{output.name}.png")
