"""Multiple choice: the answer is a letter (C-STANCE, FOMC), or a letter and an explanation (ScienceQA).

`choice`: trace_strict and treelora_prefix as in exact.py; moram first reduces the prediction to a letter A-C.
`choice_explained`: the letter is the first character, as published; the explanation does not count.
lenient, for both: the letter that the answer names, at any position.
"""

import re

from codyra_llm.evaluation.scorers import exact
from codyra_llm.evaluation.scorers.base import OriginalCrash, Score

MORAM_LABELS = "ABC"
MORAM_LETTER = re.compile(rf"\b([{MORAM_LABELS}])\b", re.IGNORECASE)

OPTION_IN_PROMPT = re.compile(r"(?<![A-Za-z])([A-Z])[.):：]")
MARKED_ANSWER = re.compile(r"(?:answer|回答|答案)\s*(?:is|[:：])[\s*(\"']*([A-Za-z])(?![A-Za-z0-9])", re.IGNORECASE)
# Chinese text has no spaces: only Latin letters and digits count as neighbors.
LONE_CAPITAL = re.compile(r"(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9])")
ARTICLE = re.compile(r"[Aa] +[a-z]")


def moram_letter(prediction: str) -> str:
    """Returns MoRAM's letter: the first stand-alone A, B or C in any case, else the first such character, else all."""
    text = prediction.strip()
    match = MORAM_LETTER.search(text)
    if match:
        return match[1].upper()
    return next((char.upper() for char in text if char.upper() in MORAM_LABELS), text)


def moram(prompt: str, prediction: str, reference: str) -> float:
    """Returns the percent of TreeLoRA's prefix rule on the letter that MoRAM extracts from the prediction."""
    return exact.prefix(prompt, moram_letter(prediction), reference)


def first_character_strict(prompt: str, prediction: str, reference: str) -> float:
    """Returns TRACE's score on ScienceQA: 100 if first characters are equal; an empty text is an IndexError there."""
    if not prediction or not reference:
        raise OriginalCrash("IndexError: empty text has no first character")
    return 100.0 * (prediction[0] == reference[0])


def first_character_stripped(prompt: str, prediction: str, reference: str) -> float:
    """Returns the score of TreeLoRA and MoRAM on ScienceQA: as TRACE after stripping, with "N/A" for an empty text."""
    answer, target = ((text.strip()[:1] or "N/A") for text in (prediction, reference))
    return exact.prefix(prompt, answer, target)


def options(prompt: str) -> str:
    """Returns the letters a prompt offers, such as "ABC": those marked as in "B." or "(B)", from A on without a gap."""
    marked = set(OPTION_IN_PROMPT.findall(prompt))
    offered = ""
    while len(offered) < 26 and (letter := chr(ord("A") + len(offered))) in marked:
        offered += letter
    return offered if len(offered) > 1 else "ABCDE"


def named_letter(answer: str, offered: str) -> str | None:
    """Returns the option an answer names: that after "Answer:" if given, else its first stand-alone capital letter."""
    letters = [char for char in answer if char.isalpha()]
    if len(letters) == 1 and letters[0].upper() in offered:
        return letters[0].upper()
    marked = MARKED_ANSWER.search(answer)
    if marked and marked[1].upper() in offered and not ARTICLE.match(answer[marked.start(1) :]):
        return marked[1].upper()
    lone = [match for match in LONE_CAPITAL.finditer(answer) if match[1] in offered]
    # "A clear case, so B": the English article is the answer only where there is no other candidate.
    named = [match for match in lone if not ARTICLE.match(answer[match.start() :])] or lone
    return named[0][1] if named else None


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns 100 if the prediction equals the reference or names the same letter, else 0."""
    if exact.same_text(prediction, reference):
        return 100.0
    offered = options(prompt)
    target = reference.strip()[:1].upper()
    return 100.0 * (target != "" and named_letter(prediction, offered) == target)


CHOICE: dict[str, Score] = {
    "trace_strict": exact.strict,
    "treelora_prefix": exact.prefix,
    "moram": moram,
    "lenient": lenient,
}
CHOICE_EXPLAINED: dict[str, Score] = {
    "trace_strict": first_character_strict,
    "treelora_prefix": first_character_stripped,
    "moram": first_character_stripped,
    "lenient": lenient,
}
