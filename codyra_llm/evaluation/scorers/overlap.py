"""Answers scored by overlap with the reference in words (SQuAD), n-grams (BLEU) or characters (chrF); and as JSON.

f1      SQuAD's token F1: words without case, punctuation and the articles a, an, the (Rajpurkar et al. 2016)
bleu    sacrebleu's sentence BLEU with its own tokenizer (13a) and smoothing (exp)
chrf    sacrebleu's sentence chrF2
json    the answer is the reference, or JSON (in a Markdown fence or not) that equals the reference if that is JSON
The score of a task is the mean over rows; for BLEU and chrF this is not the corpus score. All variants are the same.
"""

import functools
import json
import re
import string
from collections import Counter
from typing import Any

from codyra_llm.evaluation.scorers.base import VARIANTS, Score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


def token_f1(prompt: str, prediction: str, reference: str) -> float:
    """Returns SQuAD's F1 of one row, in percent; 100 if neither text has words, 0 if only one has none."""
    found, expected = _words(prediction), _words(reference)
    if not found or not expected:
        return 100.0 * (found == expected)
    shared = sum((Counter(found) & Counter(expected)).values())
    return 100.0 * 2 * shared / (len(found) + len(expected))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def sentence_bleu(prompt: str, prediction: str, reference: str) -> float:
    """Returns the sentence BLEU of one row, in percent."""
    if prediction.split() == reference.split():
        return 100.0
    return min(100.0, float(_metric("BLEU").sentence_score(prediction, [reference]).score))  # it rounds


def sentence_chrf(prompt: str, prediction: str, reference: str) -> float:
    """Returns the sentence chrF2 of one row, in percent."""
    if prediction.split() == reference.split():
        return 100.0
    return min(100.0, float(_metric("CHRF").sentence_score(prediction, [reference]).score))


@functools.cache
def _metric(name: str) -> Any:
    from sacrebleu import metrics  # takes a while to import, and few need it

    return metrics.BLEU(effective_order=True) if name == "BLEU" else metrics.CHRF()


def json_equal(prompt: str, prediction: str, reference: str) -> float:
    """Returns 100 if the answer is the reference, or valid JSON that equals the reference if that is JSON; else 0."""
    if prediction == reference:
        return 100.0
    fenced = _FENCED.fullmatch(prediction)
    try:
        found = json.loads(fenced[1] if fenced else prediction)
    except (ValueError, RecursionError):
        return 0.0
    try:
        expected = json.loads(reference)
    except (ValueError, RecursionError):
        return 100.0
    return 100.0 * (json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True))


def same_in_all(score: Score) -> dict[str, Score]:
    """Returns a scorer without published variants: the same score in every variant."""
    return dict.fromkeys(VARIANTS, score)


F1, BLEU, CHRF, JSON = (same_in_all(score) for score in (token_f1, sentence_bleu, sentence_chrf, json_equal))
