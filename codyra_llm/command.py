"""What every command shares: bad input ends it with one line and status 2, a stop that was asked for with status 75."""

import argparse
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from codyra_llm.engine.environment import prints
from codyra_llm.errors import Stopped, UserError

STOPPED_STATUS = os.EX_TEMPFAIL  # 75: started again, the command goes on where it stopped


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their whole name, and whose complaints are `UserError`s like any other."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"command line: {message}; see --help")


def main(command: Callable[[], None]) -> None:
    """Runs a command; a UserError is printed as one line (by rank 0 where it has it) and ends it with status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        command()
        _leave()
    except UserError as error:
        who = ""
        if not prints(error):
            # launchers end all processes once one has ended: whoever lives on is alone with its error
            time.sleep(5)
            who = f"rank {os.environ.get('RANK') or os.environ.get('SLURM_PROCID')} on {socket.gethostname()}: "
        print(f"error: {who}{error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Stopped:
        _leave()
        sys.exit(STOPPED_STATUS)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave() -> None:
    launch = sys.modules.get("codyra_llm.engine.launch")  # a command that did not need it has not loaded it
    if launch:
        launch.leave()
