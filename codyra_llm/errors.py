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
    """The run was asked to stop and kept all it had done; started again, it goes on. Commands exit with status 75."""


class RankFailed(Exception):
    """This rank failed amid what all ranks do together: not even who forgives errors may let it go on alone."""


class RendezvousError(UserError):
    """The processes of a run did not find each other; one on each host says so, since rank 0 may not be there."""
