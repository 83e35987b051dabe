"""Scores stored predictions in every variant, or computes every metric of an accuracy matrix.

    python scripts/score.py --task FOMC predictions.jsonl
    python scripts/score.py --task my-task --task_file my_tasks.yaml predictions.jsonl
    python scripts/score.py --matrix accuracy.csv

predictions.jsonl has one {"prompt": ..., "prediction": ..., "reference": ...} a line; other keys are ignored.
accuracy.csv has a header of task names and the rows base, after task 1, ..., after task T (a label column may lead).
The result is one JSON object on standard output:
    {"task", "n", "totals": {variant: percent}, "rows": [{variant: percent}]}   or   {metric: value or null}
Warnings go to standard error. Bad input: one line "error: ..." there, and exit status 2.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from codyra_llm.command import Parser
from codyra_llm.config import DEFAULT_TASK_FILE
from codyra_llm.data.stream import read_task_file
from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import matrix_metrics, read_matrix_csv
from codyra_llm.evaluation.scorers import check_scorer, score_rows
from codyra_llm.files import read_jsonl

ROW_KEYS = ("prompt", "prediction", "reference")


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.jsonl", help="predictions to score")
    parser.add_argument("--task", help="the task they belong to; it decides the scorer")
    parser.add_argument(
        "--task_file",
        type=Path,
        default=DEFAULT_TASK_FILE,
        help="task file, like tasks/trace/trace.yaml",
    )
    parser.add_argument("--allow_code", action="store_true", help="import a scorer that the task file names, its code")
    parser.add_argument("--matrix", type=Path, metavar="FILE.csv", help="accuracy matrix to compute metrics of")
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Returns the options.

    Raises:
        UserError: options are missing or incompatible.
    """
    options = make_parser().parse_args(arguments)
    if options.matrix and (options.task or options.file):
        raise UserError("--matrix stands alone; leave out --task and the file of predictions")
    if not options.matrix and not (options.task and options.file):
        raise UserError("give --task NAME FILE.jsonl, or --matrix FILE.csv")
    return options


def scorer_of(task: str, task_file: Path) -> str:
    """Returns the name of a task's first scorer."""
    specs, _, _ = read_task_file(task_file)
    if task not in specs:
        raise UserError(f"unknown task {task!r}; {task_file} has {', '.join(specs)}")
    if specs[task].is_text:
        raise UserError(f"task {task}: bits per byte are what the model makes of a text; there is no answer to score")
    return specs[task].scorers[0]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a JSONL file; blank lines are skipped."""
    rows = []
    for number, row in read_jsonl(path, "the predictions cannot be read"):
        for key in ROW_KEYS:
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise UserError(f'{path} line {number}: no text under "{key}"; every row needs {", ".join(ROW_KEYS)}')
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows in it; every line needs a JSON object with {', '.join(ROW_KEYS)}")
    return rows


def command() -> None:
    """Reads the command line and prints the result."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="warning: %(message)s")
    options = parse_arguments(sys.argv[1:])
    result: dict[str, Any]
    if options.matrix:
        _, matrix = read_matrix_csv(options.matrix)
        result = matrix_metrics(matrix)
    else:
        scorer = scorer_of(options.task, options.task_file)
        check_scorer(scorer, options.allow_code, "--allow_code")
        result = {"task": options.task, **score_rows(scorer, read_rows(options.file))}
    print(json.dumps(result, indent=2, allow_nan=False))
