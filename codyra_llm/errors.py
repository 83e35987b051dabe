"""The exceptions that end a command before its work is done."""

from codyra_llm.text import one_line, scrub


class UserError(Exception):
    """A mistake in the user's input (config, data, paths): one line about what is wrong, where, and what is right.

    Commands print it and exit with status 2. Text from a user's file in the message (line breaks, terminal escape
    sequences, megabytes of text, passwords in URLs) is reduced to one printable line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(scrub(message)))


class Stopped(Exception):
    """The run was asked to stop and has saved its work; started again, it resumes. Commands exit with status 75."""


class RankFailed(Exception):
    """A rank failed inside a collective operation. It must not be suppressed, since the other ranks are waiting."""


class RendezvousError(UserError):
    """The processes of a run did not find each other; one per host prints it, since rank 0 may be missing."""


def reason(error: Exception) -> str:
    """Returns the first sentence of a library's error message, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
