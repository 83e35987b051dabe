"""Compares two models' answers to prompts of yours: win, tie and lose by a judge, and proxies that need none.

    python scripts/judge.py --model runs/x/model --against base --prompts helpful.jsonl,harmless.jsonl \\
        --criteria helpfulness,harmlessness --judge https://host/v1 --judge_model NAME --output_dir runs/x-judge
    deepspeed scripts/judge.py --model runs/x/model --against runs/y/model --prompts helpful.jsonl --judge JUDGE_FOLDER
    python scripts/judge.py --model runs/x/model --against base --prompts helpful.jsonl --judge none

A row of a file of prompts is {"prompt": ..., "id": ..., "category": ..., "checks": {"max_words": 50, ...}}; all but the
prompt may be left out. docs/judge.md says what is judged, and how.
"""

import sys

from codyra_llm.command import Parser
from codyra_llm.evaluation.judge.config import config_of, settings_parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    return settings_parser(__doc__)


def command() -> None:
    """Reads the command line and compares the two models."""
    config = config_of(make_parser().parse_args(sys.argv[1:]))
    from codyra_llm.workflows.judge import (
        judge_models,  # after the command line, so that --help and mistakes do not wait for imports
    )

    judge_models(config)
