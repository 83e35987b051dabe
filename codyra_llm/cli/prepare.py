"""Checks a downloaded copy of TRACE, X-TAIL or MTIL; of TRACE, it also writes one with a clean validation split.

python scripts/prepare_trace.py --data_dir DATA [--tasks FOMC,Py150] [--validation_size N --output_dir OUT] [--json]
python scripts/prepare_clip.py --data_dir DATA [--tasks Pets,SUN397] [--json]
codyra prepare --task_file tasks/xtail/xtail.yaml --data_dir DATA
"""

import sys

from codyra_llm.data.prepare import make_parser, prepare
from codyra_llm.data.stream import read_outline
from codyra_llm.domains.images.prepare import prepare as prepare_pictures
from codyra_llm.files import shipped

__all__ = ["command", "command_of_pictures", "make_parser"]


def command() -> int:
    """Reads the command line and checks the data of its task file: rows of text, or pictures."""
    args = make_parser().parse_args(sys.argv[1:])
    content, _, _ = read_outline(args.task_file)
    return prepare_pictures(args) if content.get("domain") == "images" else prepare(sys.argv[1:])


def command_of_pictures() -> int:
    """Runs `command` with all eleven domains of pictures (MTIL) as the default task file."""
    sys.argv[1:1] = [
        "--task_file",
        str(shipped("tasks/mtil/mtil.yaml")),
    ]  # a --task_file of the user comes later and wins
    return command()
