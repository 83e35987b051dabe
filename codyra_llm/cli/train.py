"""Teaches a model a stream of tasks, one after another, and measures what it knows after each.

    deepspeed scripts/train_trace.py --config configs/quickstart.yaml   # the quickstart
    deepspeed scripts/train_trace.py --config configs/trace500_llama2_7b.yaml --data_dir DATA \\
        --output_dir runs/x --deepspeed ds_configs/zero2.json
    deepspeed --num_accelerators 2 scripts/train_trace.py --config configs/smoke.yaml
    torchrun --nproc_per_node 2 scripts/train_trace.py --config configs/smoke.yaml
    python scripts/train_trace.py --config configs/smoke.yaml           # one process

Every field of the configuration can be overridden: --adapter.rank 8 --train.learning_rate 1e-4 --order FOMC,Py150.
"""

import sys

from codyra_llm.config import parse_command_line


def command() -> None:
    """Reads the command line and runs."""
    config = parse_command_line(sys.argv[1:], __doc__)
    from codyra_llm.workflows.train import run  # after the command line, so that --help and mistakes answer at once

    run(config)
