"""SARI for text simplification (Xu et al. 2016), as computed by Hugging Face's metric of that name.

For n = 1..4, on n-grams of source S, candidate C and one reference R:
    keep = F1 of what S and C share against what S and R share
    del  = precision of what C dropped from S
    add  = F1 of the distinct n-grams C added to S
(0/0 counts as 1); SARI is the mean over n and over the three parts.

trace_strict, treelora_prefix, moram   the source is the whole prompt, instruction included
lenient                                the source is the paragraph alone
SARI has a high floor: an empty prediction scores about 37 on 20Minuten.
"""

import re
from collections import Counter

from codyra_llm.evaluation.scorers.base import Score

PARAGRAPH = re.compile(r"Paragraph:\n(.*)\n\nSimplification:", re.DOTALL)
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# The "13a" (mteval) rules for Western text: ASCII symbols stand alone (not ' - . ,), periods and commas stand
# alone unless between digits, a dash after a digit stands alone.
TOKEN_RULES = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokens(text: str) -> list[str]:
    """Returns lower-cased 13a tokens; an empty text is one empty token, as in the original."""
    text = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, char in ENTITIES:
        text = text.replace(entity, char)
    text = f" {text} "
    for pattern, replacement in TOKEN_RULES:
        text = pattern.sub(replacement, text)
    return text.split() or [""]


def f1(precision: float, recall: float) -> float:
    """Returns the harmonic mean, 0 if both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def keep_delete_add(
    source: Counter[tuple[str, ...]], candidate: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]
) -> float:
    """Returns the sum (0-3) of the three parts of SARI for one n-gram length."""
    kept, to_keep = source & candidate, source & reference
    well_kept = kept & reference
    keep_precision = sum(count / kept[gram] for gram, count in well_kept.items()) / len(kept) if kept else 1.0
    keep_recall = well_kept.total() / to_keep.total() if to_keep else 1.0

    deleted = source - candidate
    well_deleted = deleted - reference
    delete = sum(count / deleted[gram] for gram, count in well_deleted.items()) / len(deleted) if deleted else 1.0

    added, to_add = set(candidate) - set(source), set(reference) - set(source)
    well_added = len(added & to_add)
    add_precision = well_added / len(added) if added else 1.0
    add_recall = well_added / len(to_add) if to_add else 1.0
    return f1(keep_precision, keep_recall) + delete + f1(add_precision, add_recall)


def sari(source: str, prediction: str, reference: str) -> float:
    """Returns SARI of one prediction against one reference, in percent."""
    texts = [tokens(text) for text in (source, prediction, reference)]
    total = 0.0
    for n in range(1, 5):
        grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in texts]
        total += keep_delete_add(*grams)
    return 100 * total / 12


def paragraph(prompt: str) -> str:
    """Returns the paragraph to simplify, without the instruction; the whole prompt if it has a different form."""
    match = PARAGRAPH.search(prompt)
    return match[1] if match else prompt


def lenient(prompt: str, prediction: str, reference: str) -> float:
    """Returns SARI with the paragraph alone as source, in percent."""
    return sari(paragraph(prompt), prediction, reference)


SARI: dict[str, Score] = {
    "trace_strict": sari,
    "treelora_prefix": sari,
    "moram": sari,
    "lenient": lenient,
}
