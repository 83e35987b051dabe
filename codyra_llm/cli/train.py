"""Teaches a model a stream of tasks, one after another, and measures what it knows after each.

    deepspeed scripts/train_trace.py --config configs/quickstart.yaml   # the quickstart
    deepspeed scripts/train_trace.py --config configs/trace500_llama2_7b.yaml --data_dir DATA \\
        --output_dir runs/x --deepspeed ds_configs/zero2.json
    deepspeed --num_accelerators 2 scripts/train_trace.py --config configs/smoke.yaml
    torchrun --nproc_per_node 2 scripts/train_trace.py --config configs/smoke.yaml
    python scripts/train_trace.py --config configs/smoke.yaml           # one process
    python scripts/train_trace.py --config smoke --dry_run              # says what it would do, and ends

Every field of the configuration can be overridden: --adapter.rank 8 --train.learning_rate 1e-4 --order FOMC,Py150.
"""

import sys

from codyra_llm.command import Parser
from codyra_llm.config import SettingsParser, config_of


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = SettingsParser(__doc__)
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be done and a row of each task, and end"
    )
    return parser


def command() -> None:
    """Reads the command line and starts the run."""
    options = vars(make_parser().parse_args(sys.argv[1:]))
    is_dry = options.pop("dry_run")
    config = config_of(options)
    # after the command line, so that --help and mistakes do not wait for imports
    if is_dry:
        from codyra_llm.workflows.dry_run import dry_run

        dry_run(config)
    else:
        from codyra_llm.workflows.train import run

        run(config)
