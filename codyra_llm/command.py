"""What every command shares: bad input ends it with one line and status 2."""

import os
import sys
import warnings
from collections.abc import Callable

from codyra_llm.errors import UserError


def main(command: Callable[[], None]) -> None:
    """Runs a command; a UserError is printed as one line (by the first process alone) and ends it with status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        command()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
