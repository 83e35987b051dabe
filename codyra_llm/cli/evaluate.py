"""Scores a saved model without training: on the tasks of a configuration, on suites of general ability, or a whole run.

    deepspeed scripts/evaluate.py --config configs/trace500_llama2_7b.yaml --data_dir DATA \\
        --model runs/x/model --output_dir runs/x-scores
    torchrun --nproc_per_node 2 scripts/evaluate.py --config configs/smoke.yaml --output_dir runs/smoke-scores
    python scripts/evaluate.py --model runs/x/model --suites general --general.data_dir DATA
    python scripts/evaluate.py --run runs/x --suites mmlu,bbh --after FOMC,Py150
    python scripts/evaluate.py --run runs/x --tasks --data.max_test_examples 500 --output_dir runs/x-500

--model is a folder that a run saved, whose tasks, limits and chat template are then those of the run; or whatever a run
can start from. With --suites, general ability alone is measured
(`general`: mmlu, gsm8k, bbh, tydiqa, boolq, piqa), for which no task data is needed.

--run measures what a finished run lacks of its general ability, because a suite failed or was not asked for: the base
model and the model after each task (or those of --after), rebuilt from the run's ledger. Its results, table and plot
are brought up to date. With --tasks, the run's tasks are scored again, with more rows, longer answers or another
variant; what is found goes into a folder of its own, and the run stays as it is.

Takes what train_trace.py takes; what only training needs is checked and not used.
"""

import argparse
import dataclasses
import re
import sys
from typing import TYPE_CHECKING

from codyra_llm.command import Parser
from codyra_llm.config import SettingsParser, config_of
from codyra_llm.errors import UserError
from codyra_llm.files import expand

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig

OWN = ("model", "run", "suites", "tasks", "after")  # options that are not settings of a run


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = SettingsParser(__doc__)
    parser.add_argument("--model", metavar="NAME", help="the same as --model.name_or_path")
    parser.add_argument("--run", metavar="DIR", help="folder of a finished run")
    parser.add_argument("--suites", metavar="A,B", help="the same as --general.suites, and nothing but these")
    parser.add_argument("--tasks", action="store_true", help="with --run: score the run's tasks again, not the suites")
    parser.add_argument("--after", metavar="TASK,TASK", help="with --run: tasks after which to measure; default: each")
    return parser


def parse_arguments(arguments: list[str]) -> "tuple[argparse.Namespace, RunConfig]":
    """Returns the options, and the configuration from all settings on the command line.

    Without --config, the base is the config.yaml of --run, or of the run that saved --model, if there is one.

    Raises:
        UserError: options are incompatible or invalid.
    """
    options = make_parser().parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if name not in OWN}
    _check_together(options, given)
    options.run = expand(options.run) if options.run else None
    if options.run and not (options.run / "config.yaml").is_file():
        raise UserError(f"--run {options.run}: holds no config.yaml; name the folder of a finished run")
    run = expand(options.model).absolute().parent if options.model else options.run
    saved = run / "config.yaml" if run and not options.config and (run / "config.yaml").is_file() else None
    if saved:
        given["config"] = str(saved)
    if options.model:
        given["model.name_or_path"] = options.model
        if saved:
            given.setdefault("model.quantization", "")  # a quantized model is saved and loaded quantized
            given.setdefault("output_dir", f"runs/scores-{run.name}")
    if options.tasks:
        given.setdefault("output_dir", f"{options.run}-scores")
    if options.suites:
        given["general.suites"] = options.suites
    config = config_of(given)
    if options.suites and not options.run and "output_dir" not in given:
        name = re.sub(r"[^\w.-]+", "-", config.model.name_or_path).strip("-")
        config = dataclasses.replace(config, output_dir=f"runs/general-{name}")
    return options, config


def _check_together(options: argparse.Namespace, given: dict[str, str]) -> None:
    if options.run and options.model:
        raise UserError("--run and --model: give one of them; a run names its model itself")
    if options.tasks and (options.suites or not options.run):
        raise UserError("--tasks: goes with --run, which names the run whose tasks are meant, and without --suites")
    if options.run and "output_dir" in given and not options.tasks:
        raise UserError("--run and --output_dir: give one of them; what is measured of a run goes into its own folder")
    if options.after and not options.run:
        raise UserError("--after: goes with --run, which names the run whose tasks are meant")


def command() -> None:
    """Reads the command line and scores a model or a run."""
    options, config = parse_arguments(sys.argv[1:])
    # after the command line, so that --help and mistakes do not wait for imports
    from codyra_llm.workflows.evaluate import score_model, score_run
    from codyra_llm.workflows.general_ability import measure_later, score_suites

    after = options.after.split(",") if options.after else ()
    if options.tasks:
        score_run(options.run, config, after)
    elif options.run:
        measure_later(options.run, config, after)
    elif options.suites:
        score_suites(config)
    else:
        score_model(config)
