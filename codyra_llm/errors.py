"""What ends a command other than its work being done."""

from codyra_llm.text import one_line, scrub


class UserError(Exception):
    """A mistake in what the user gave (config, data, paths): one line that names what is wrong, where, what is right.

    Commands print it and exit with status 2. What a user's file brings into the message (line breaks, escape sequences
    of terminals, megabytes, passwords in URLs) leaves it as one printable line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(scrub(message)))


class Stopped(Exception):
    """The run was asked to stop and saved all it had done; started again, it resumes. Commands exit with status 75."""


class RankFailed(Exception):
    """A rank failed inside a collective operation. Must never be swallowed: the other ranks are waiting."""


class RendezvousError(UserError):
    """The processes of a run did not find each other; one on each host says so, since rank 0 may not be there."""


def reason(error: Exception) -> str:
    """The first sentence of what a library says went wrong, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
