"""Says whether kept ranks are learned: which part of their variance tasks and projections explain, against noise.

    codyra probe runs/compare_nano/codyra/order1-seed*
    codyra probe runs/compare_nano/codyra/order1-seed0 runs/compare_nano/codyra/order1-seed1 --output ranks

The runs are finished ones of one configuration, which differ in nothing but the seed. Variance components are those of
a two-way analysis with random effects: what runs with other seeds keep in the same projection and task is noise.
Beside the table, OUTPUT.png shows the mean rank of each task by kind of projection and by layer.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError, reason


def make_parser() -> Parser:
    """What the command line may be."""
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--output", type=Path, default=Path("ranks"), help="the picture, without its ending")
    return parser


def command() -> None:
    """Reads the runs, prints the table and draws the picture."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.report.rank_variance import plot_kept_ranks, shares_table  # after the command line
    from codyra_llm.results.rank_variance import read_ranks, variance_shares

    kept = read_ranks(options.runs)
    shares = variance_shares(kept.ranks)
    print(shares_table(shares))
    picture = options.output.with_name(f"{options.output.name}.png")
    try:
        plot_kept_ranks(kept, shares, picture)
    except OSError as error:
        raise UserError(f"--output {options.output}: cannot be written: {reason(error)}") from None
    print(f"\n{picture}")
