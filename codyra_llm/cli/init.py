"""Starts a task stream: `codyra init my_tasks --data tickets.csv` writes a task file, data and a configuration.

    codyra init my_tasks --data tickets.csv
    codyra init my_tasks --data tickets.csv --columns prompt=question,answer=reply --test 0.1
    codyra init my_tasks --data support=talks.jsonl --data news=news.parquet
    codyra train --config my_tasks/config.yaml

Each table (JSON, JSON Lines, CSV, TSV, Parquet, also .gz) becomes a task, named as its file is unless told otherwise. A
fixed random part of its rows is held out to score the model on (--test), none of whose prompts is trained on.
"""

import sys
from pathlib import Path

from codyra_llm.command import Parser
from codyra_llm.errors import UserError
from codyra_llm.files import expand


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder for the tasks, their rows and the configuration")
    parser.add_argument("--data", action="append", required=True, metavar="[TASK=]FILE", help="a table of rows")
    parser.add_argument(
        "--columns",
        metavar="prompt=A,answer=B",
        help="names of the columns (text=A of raw text), where they are others",
    )
    parser.add_argument(
        "--test", type=float, default=0.1, metavar="SHARE", help="of the rows to hold out (default: 0.1)"
    )
    parser.add_argument("--model", metavar="NAME", default="smollm2-135m-instruct", help="the model to teach")
    return parser


def command() -> None:
    """Reads the command line and writes the folder."""
    options = make_parser().parse_args(sys.argv[1:])
    from codyra_llm.workflows.init import begin_stream  # after the command line, so that mistakes are reported at once

    columns = dict(_pair(part, "--columns") for part in options.columns.split(",")) if options.columns else None
    files = {}
    for given in options.data:
        task, file = _pair(given, "--data") if "=" in given else (Path(given).name.split(".")[0], given)
        if task in files:
            raise UserError(f"--data {given}: there is a task {task} already; give another name, as NAME={file}")
        files[task] = expand(file)
    print(begin_stream(expand(options.folder), files, columns, options.test, options.model))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise UserError(f"{option} {text}: give NAME=VALUE")
    return name.strip(), value.strip()
