"""What every scorer is made of: one function per variant, from (prompt, prediction, reference) to percent."""

from collections.abc import Callable

# Percent (0-100) of one row, from its prompt, prediction and reference.
Score = Callable[[str, str, str], float]

VARIANTS = ("trace_strict", "treelora_prefix", "moram", "lenient")


class OriginalCrash(Exception):
    """The published code stops with an exception on this row; `score_rows` gives such a row 0 and says so."""
