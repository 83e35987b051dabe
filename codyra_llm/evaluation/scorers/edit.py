"""Code completion by edit similarity (Py150), on texts whose literal placeholders were filled in.

trace_strict, treelora_prefix, moram   round(100 * difflib ratio), as fuzzywuzzy without python-Levenshtein
lenient                                rapidfuzz ratio, unrounded, of the first lines (up to a newline or <EOL>)
The two ratios differ (21.6 against 24.6 on shuffled references), so do not compare across variants.
"""

import re
from difflib import SequenceMatcher

from rapidfuzz import fuzz

from codyra_llm.evaluation.scorers.base import Score

FILLED_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
END_OF_LINE = re.compile(r"\n|<EOL>")


def fill_literals(code: str) -> str:
    """Returns the code after TRACE's clean-up: <NUM_LIT> is 0, <STR_LIT> and <CHAR_LIT> are empty, <STR_LIT:x> is x."""
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    for literal in FILLED_LITERAL.finditer(code):
        code = code.replace(literal[0], literal[1])
    return code


def strict(prompt: str, prediction: str, reference: str) -> float:
    """Returns the published edit similarity of one row: a whole percent, 0 if either text is empty."""
    prediction, reference = fill_literals(prediction), fill_literals(reference)
    if not prediction or not reference:
        return 0.0
    return float(round(100 * SequenceMatcher(None, prediction, reference).ratio()))


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns the edit similarity of the first lines, in percent; text after the first line does not count."""
    first_lines = (END_OF_LINE.split(text.strip())[0].strip() for text in (prediction, reference))
    predicted_line, reference_line = (fill_literals(line) for line in first_lines)
    if not predicted_line or not reference_line:
        return 100.0 * (predicted_line == reference_line)
    return fuzz.ratio(predicted_line, reference_line)


EDIT_SIMILARITY: dict[str, Score] = {
    "trace_strict": strict,
    "treelora_prefix": strict,
    "moram": strict,
    "lenient": lenient,
}
