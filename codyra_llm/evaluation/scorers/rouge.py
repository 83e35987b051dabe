"""ROUGE-L F of summaries, as computed by package rouge 1.0.1 and by package rouge-score.

Published (Lin 2004, summary level, on sets of words): a text is split into sentences at every "."; U is the set of
words on a longest common subsequence of any (reference sentence, hypothesis sentence) pair, and with m and n the
numbers of distinct words of reference and hypothesis, P = |U|/n, R = |U|/m, F = 2PR / (P + R + 1e-8).
A sentence of whitespace only is one empty word, which counts.

trace_strict      TRACE passes the two texts in swapped order; a text of periods only is a ValueError there
treelora_prefix   as TRACE, after a newline is added to a prediction that has none (so "." no longer crashes)
moram             as TreeLoRA with the order restored
lenient           package rouge-score's ROUGE-L of the whole texts; words are runs of word characters, case-folded
In the first three an empty prediction or reference scores 0. The published code is recursive and fails on long
sentences (RecursionError); here such rows get the value it would have returned.
"""

import functools
import re
from typing import Any

import numpy as np

from codyra_llm.evaluation.scorers.base import OriginalCrash, Score

WORD = re.compile(r"\w+")


def lcs_words(x: list[str], y: list[str]) -> set[str]:
    """Returns the words of a longest common subsequence of x and y (ties as in package rouge: y is shortened first)."""
    if not set(x) & set(y):
        return set()
    ids = {word: number for number, word in enumerate(dict.fromkeys(x + y))}
    x_ids, y_ids = (np.array([ids[word] for word in words]) for words in (x, y))
    # table[i, j] = length of the longest common subsequence of x[:i] and y[:j]
    table = np.zeros((len(x) + 1, len(y) + 1), dtype=np.int32)
    for i, word in enumerate(x_ids):
        np.maximum.accumulate(np.maximum(table[i, 1:], table[i, :-1] + (y_ids == word)), out=table[i + 1, 1:])
    found, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.add(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def sentences(text: str) -> list[list[str]]:
    """Returns the distinct sentences of a text as lists of words (a repeated sentence adds no word to the set)."""
    cut = dict.fromkeys(" ".join(sentence.split()) for sentence in text.split(".") if sentence)
    return [sentence.split(" ") for sentence in cut]


def rouge_l_f(hypothesis: str, reference: str) -> float:
    """Returns ROUGE-L F (0-1) as computed by package rouge 1.0.1."""
    hypothesis_sentences, reference_sentences = sentences(hypothesis), sentences(reference)
    if not hypothesis_sentences or not reference_sentences:
        raise OriginalCrash("ValueError: ROUGE of a text without a sentence")
    union = set()
    for reference_words in reference_sentences:
        for hypothesis_words in hypothesis_sentences:
            union |= lcs_words(reference_words, hypothesis_words)
    precision = len(union) / len({word for words in hypothesis_sentences for word in words})
    recall = len(union) / len({word for words in reference_sentences for word in words})
    return 2 * precision * recall / (precision + recall + 1e-8)


def with_newline(prediction: str) -> str:
    """Returns the text with TreeLoRA's guard against the crash on "."; it adds an empty sentence after a period."""
    return prediction if "\n" in prediction else prediction + "\n"


def strict(prompt: str, prediction: str, reference: str) -> float:
    """Returns TRACE's ROUGE-L of one row, in percent."""
    return 100 * rouge_l_f(reference, prediction) if prediction and reference else 0.0


def treelora(prompt: str, prediction: str, reference: str) -> float:
    """Returns TreeLoRA's ROUGE-L of one row, in percent."""
    return 100 * rouge_l_f(reference, with_newline(prediction)) if prediction and reference else 0.0


def moram(prompt: str, prediction: str, reference: str) -> float:
    """Returns MoRAM's ROUGE-L of one row, in percent."""
    return 100 * rouge_l_f(with_newline(prediction), reference) if prediction and reference else 0.0


class _UnicodeWords:
    """A tokenizer of Unicode words; the package's own drops non-ASCII characters, as in German or Chinese answers."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.casefold())


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes seconds to import, and not every run needs it

    return RougeScorer(["rougeL"], tokenizer=_UnicodeWords())


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns ROUGE-L F of package rouge-score, in percent: case, punctuation and sentence ends do not count."""
    if not WORD.search(prediction) or not WORD.search(reference):
        return 100.0 * (prediction.strip() == reference.strip())
    return 100.0 * _scorer().score(reference, prediction)["rougeL"].fmeasure


ROUGE_L: dict[str, Score] = {
    "trace_strict": strict,
    "treelora_prefix": treelora,
    "moram": moram,
    "lenient": lenient,
}
