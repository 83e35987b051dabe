"""Answers compared as strings.

trace_strict      raw equality, case- and whitespace-sensitive (TRACE)
treelora_prefix   prediction stripped and truncated to the reference's length, then equality (TreeLoRA, MoRAM)
lenient           both in one Unicode form (NFKC), stripped and case-folded, then equality
A row whose prediction or reference is empty scores 0 in the first two.
"""

import unicodedata

from codyra_llm.evaluation.scorers.base import Score


def strict(prompt: str, prediction: str, reference: str) -> float:
    """Returns TRACE's accuracy of one row, in percent."""
    return 100.0 * (prediction != "" and prediction == reference)


def prefix(prompt: str, prediction: str, reference: str) -> float:
    """Returns TreeLoRA's accuracy of one row, in percent: "123" counts for "12", "Because" for "B"."""
    # a shorter prediction is not truncated and so cannot match; the reference is not stripped
    cut = prediction.strip()[: len(reference)]
    return 100.0 * (cut != "" and cut == reference)


def same_text(a: str, b: str) -> bool:
    """True if two texts are equal except for case, surrounding whitespace and forms of the same character (NFKC)."""
    return _plain(a) == _plain(b)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns 100 if the texts are equal as in `same_text`, else 0."""
    return 100.0 * same_text(prediction, reference)


ACCURACY: dict[str, Score] = {
    "trace_strict": strict,
    "treelora_prefix": prefix,
    "moram": prefix,
    "lenient": lenient,
}
