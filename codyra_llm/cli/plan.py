"""Estimates a run before any GPU is rented: memory, traffic, steps, sizes, and the ZeRO stages and settings that fit.

    python scripts/plan.py --model meta-llama/Llama-2-7b-chat-hf --config configs/trace500_llama2_7b.yaml \\
        --gpus 8 --gpu-memory 80GB
    python scripts/plan.py --config configs/smoke.yaml --gpus 2 --gpu-memory 24GiB --json
    python scripts/plan.py --config configs/trace500_llama2_7b.yaml --gpu-memory 24GB        # a table for 1 to 8 GPUs
    python scripts/plan.py --config configs/trace500_llama2_7b.yaml --gpus 8 --gpu-memory 80GB --rows 5000 \\
        --test-rows 500 --ceilings h100                                                      # times as well

The model is built without memory from its configuration; nothing is downloaded but smollm2-135m-instruct. Every field
of the run's configuration can be overridden as in train_trace.py: --train.per_device_train_batch_size 4.
"""

import contextlib
import json
import os
import sys

from codyra_llm.command import Parser
from codyra_llm.config import SettingsParser, config_of

OWN = ("model", "gpus", "gpu_memory", "rows", "test_rows", "ceilings", "json")  # options that are not settings of a run


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = SettingsParser(__doc__)
    parser.add_argument("--model", metavar="NAME", help="hub id or HF folder (default: the configuration's)")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs of all nodes together (default: a table for 1 to 8 of them)"
    )
    parser.add_argument("--gpu-memory", required=True, metavar="SIZE", help="memory of one GPU: 80GB, 24GiB")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows of a task, where the data is not here")
    parser.add_argument("--test-rows", type=int, metavar="N", help="test rows of a task, where the data is not here")
    parser.add_argument(
        "--ceilings",
        metavar="NAME|FILE",
        help="estimate times: by the data sheet of a100, h100 or h200, by the self-check (selfcheck.json), or by a "
        'JSON file like {"like": "h100", "disk": 5e9}',
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def command() -> None:
    """Reads the command line and prints the plan."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported, further below
    options = make_parser().parse_args(sys.argv[1:])
    given = {name: value for name, value in vars(options).items() if name not in OWN}
    if options.model:
        given["model.name_or_path"] = options.model
    config = config_of(given)
    run = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]

    # after the command line, so that mistakes are reported at once; DeepSpeed's logger keeps the stdout of its import
    with contextlib.redirect_stdout(sys.stderr):
        from codyra_llm.config.schema import describe
        from codyra_llm.planning.ceilings import find_ceilings
        from codyra_llm.planning.footprint import parse_size, plan_footprint
        from codyra_llm.planning.report import report, table

    memory = parse_size(options.gpu_memory)
    ceilings = None if options.ceilings is None else find_ceilings(options.ceilings)
    how = (memory, options.rows, options.test_rows, ceilings)
    if options.gpus is None:
        plans = [plan_footprint(config, count, *how) for count in range(1, 9)]
        print(json.dumps([each.as_dict() for each in plans], indent=2) if options.json else table(plans))
        return
    planned = plan_footprint(config, options.gpus, *how)
    if options.json:
        print(json.dumps(planned.as_dict(), indent=2))
    else:
        print(f"settings: {describe(config)}; all others by default\n\n{report(planned, run)}")
