"""The parts of every scorer: one function per variant, from (prompt, prediction, reference) to percent."""

from collections.abc import Callable

# Percent (0-100) of one row, from its prompt, prediction and reference.
Score = Callable[[str, str, str], float]

VARIANTS = ("trace_strict", "treelora_prefix", "moram", "lenient")


class OriginalCrash(Exception):
    """Raised if the published code raises an exception on a row; `score_rows` scores such a row 0 and warns."""
