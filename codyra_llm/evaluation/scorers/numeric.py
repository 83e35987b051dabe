"""Number answers (NumGLUE): trace_strict and treelora_prefix as in exact.py, moram as in math_parser.py.

lenient: the number that the answer states (commas, fractions, units, percent and currency signs are parsed), within a
relative tolerance of 1e-4 of the reference; a textual reference ("August") has to begin the answer's statement,
ignoring case.
"""

import math
import re

from codyra_llm.evaluation.scorers import exact
from codyra_llm.evaluation.scorers.base import Score
from codyra_llm.evaluation.scorers.math_parser import REL_TOL, boxed, moram

LATEX_FRACTION = re.compile(r"\\[td]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*(-?[\d.,]+)\s*\}")
NEXT_PROMPT = re.compile(r"\n\s*Question:")
STATED = re.compile(r"(?:answer\s*(?:is|:|：)|答案\s*(?:是|:|：)|####)\s*(.+)", re.IGNORECASE | re.DOTALL)
NUMBER = re.compile(
    # A minus glued to a word or digit joins two things ("10-208") and is no sign.
    r"(?P<sign>(?<![\w.])[-−+])?\s*[$€£]?\s*"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+[.,]\d+|\d+|\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d+))?"
    r"(?:\s+(?P<numerator>\d+)(?=\s*/\s*\d))?"
    r"(?:\s*/\s*(?P<denominator>\d+(?:\.\d+)?))?"
    r"(?P<percent>\s*\\?%)?"
)
GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {word: value for value, word in enumerate(UNITS + TEENS)} | {
    word: 10 * value for value, word in enumerate(TENS, start=2)
}


def statement(answer: str) -> str:
    r"""Returns the part of an answer that states the result: \boxed{}, text after "answer is", or the first line."""
    own = NEXT_PROMPT.split(answer.strip())[0].strip()
    if content := boxed(own):
        return content
    first_line, _, rest = own.partition("\n")
    stated = STATED.search(first_line) or (None if NUMBER.search(first_line) else STATED.search(rest))
    return (stated[1] if stated else first_line).strip()


def number_value(match: re.Match[str]) -> tuple[float, bool] | None:
    """Returns the value of a `NUMBER` match and whether a percent sign follows; None for a zero denominator."""
    whole = match["whole"]
    whole = whole.replace(",", "") if GROUPED.fullmatch(whole) else whole.replace(",", ".")
    value = float(f"{whole}e{match['exponent'] or 0}")
    if match["denominator"]:
        denominator = float(match["denominator"])
        if not denominator:
            return None
        # "1 3/4" is 1 + 3/4, "3/4" has no whole part.
        value = value + float(match["numerator"]) / denominator if match["numerator"] else value / denominator
    sign = -1 if match["sign"] and match["sign"] != "+" else 1
    return sign * value, bool(match["percent"])


def worded_number(text: str) -> float | None:
    """Returns the value of a text that is only a number word, such as "seventeen" or "twenty-one"; None otherwise."""
    values = [NUMBER_WORDS.get(word) for word in re.split(r"[\s-]+", text.strip().rstrip(".!").lower())]
    match values:
        case [int() as value]:
            return value
        case [int() as tens, int() as units] if tens >= 20 and 0 < units < 10:
            return tens + units
    return None


def stated_number(text: str) -> tuple[float, bool] | None:
    """Returns the first number of a statement (after its last "=", if any) and whether it is a percentage."""
    text = LATEX_FRACTION.sub(r"\1/\2", text)
    for part in (text.rpartition("=")[2], text):
        if match := NUMBER.search(part):
            return number_value(match)
    value = worded_number(text)
    return None if value is None else (value, False)


def same_number(stated: tuple[float, bool], target: tuple[float, bool]) -> bool:
    """True if equal within the tolerance; with a percent sign on one side only, 50% equals both 0.5 and 50."""
    (value, is_percent), (reference, reference_is_percent) = stated, target
    candidates = [value]
    if is_percent != reference_is_percent:
        candidates.append(value / 100 if is_percent else value * 100)
    return any(math.isclose(candidate, reference, rel_tol=REL_TOL) for candidate in candidates)


def plain(text: str) -> str:
    """Returns a text case-folded, without punctuation and whitespace around it."""
    return re.sub(r"^\W+|\W+$", "", text).casefold()


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns 100 if the prediction states the reference, else 0; as numbers if the reference begins with one."""
    if exact.same_text(prediction, reference):
        return 100.0
    said = statement(prediction)
    target = NUMBER.match(reference.strip())
    reference_value = number_value(target) if target else None
    if reference_value is None:
        wanted = plain(reference)
        return 100.0 * bool(wanted and re.match(rf"{re.escape(wanted)}(?!\w)", plain(said)))
    stated = stated_number(said)
    return 100.0 * (stated is not None and same_number(stated, reference_value))


NUMERIC: dict[str, Score] = {
    "trace_strict": exact.strict,
    "treelora_prefix": exact.prefix,
    "moram": moram,
    "lenient": lenient,
}
