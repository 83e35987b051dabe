"""Common to all commands: invalid input ends them with one line and status 2, a requested stop with status 75."""

import argparse
import difflib
import os
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from codyra_llm.distributed.environment import prints
from codyra_llm.errors import Stopped, UserError
from codyra_llm.text import shown

EXTRAS = {  # imported package -> extra that installs it
    **dict.fromkeys(
        (
            "transformers",
            "deepspeed",
            "datasets",
            "pyarrow",
            "PIL",
            "pydantic",
            "yaml",
            "tqdm",
            "psutil",
            "shtab",
            "matplotlib",
            "jinja2",
        ),
        "train",
    ),
    "lm_eval": "general",
    "bitsandbytes": "quantized",
    **dict.fromkeys(("accelerate", "wandb", "mlflow"), "track"),
}
STOPPED_STATUS = os.EX_TEMPFAIL  # 75: started again, the command resumes where it stopped


class _Done(SystemExit):
    """The command is done after printing its help."""


class Parser(argparse.ArgumentParser):
    """A parser that accepts options by their whole names only, and raises `UserError` for invalid command lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments; for an unknown option, the error suggests the closest known one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            close = difflib.get_close_matches(unknown[0].split("=")[0], self._option_string_actions, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"command line: {message}; see --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the command after its help was printed."""
        sys.stdout.flush()
        raise _Done(status)


def main(command: Callable[[], int | None]) -> None:
    """Runs a command, which returns its exit status (None: 0).

    A UserError is printed as one line (by rank 0 if it has the error) and ends the command with status 2. If other code
    calls sys.exit, the command ends with status 1, whatever status was given, since its work is not done.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    status = None
    try:
        status = command()
        sys.stdout.flush()
        _leave()
    except _Done:
        raise
    except SystemExit as stop:
        print(f"error: a library or a suite's code called sys.exit({shown(stop.code)})", file=sys.stderr, flush=True)
        sys.exit(1)
    except UserError as error:
        print(f"error: {_whose(error)}{error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        _say_what_installs(error)
        sys.exit(2)
    except Stopped:
        _leave()
        sys.exit(STOPPED_STATUS)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except RuntimeError as error:
        ranks = sys.modules.get("codyra_llm.distributed.ranks")
        line = ranks.lost_ranks(error) if ranks else None
        if line is None:
            raise
        print(f"\nerror: {line}", file=sys.stderr, flush=True)  # a progress bar may be on the current line
        os._exit(1)  # the normal end of a process group would wait for the lost ranks
    if status:
        sys.exit(status)


def _whose(error: UserError) -> str:
    """Returns a prefix naming the rank of an error that rank 0 does not have; else empty."""
    if prints(error):
        return ""
    time.sleep(5)  # launchers end all processes once one has ended: a rank that still runs is alone with its error
    return f"rank {os.environ.get('RANK') or os.environ.get('SLURM_PROCID')} on {socket.gethostname()}: "


def _say_what_installs(error: ModuleNotFoundError) -> None:
    """Prints the extra that installs a missing library; raises the error if there is none."""
    extra = EXTRAS.get(str(error.name).split(".")[0])
    if not extra:
        raise error
    print(f"error: {error.name} is not installed; pip install 'codyra_llm[{extra}]'", file=sys.stderr, flush=True)


def _output_is_closed() -> bool:
    """True if the reader of the output has ended (`| head`); remaining output is then discarded."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _leave() -> None:
    ranks = sys.modules.get("codyra_llm.distributed.ranks")  # not loaded by commands that do not use it
    if ranks:
        ranks.leave()
