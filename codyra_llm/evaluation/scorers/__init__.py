"""Scorers by name: each scores stored predictions in every published variant at once, and in a lenient one.

    score_rows("choice", [{"prompt": ..., "prediction": "B.", "reference": "B"}])
    -> {"n": 1, "totals": {"trace_strict": 0.0, "treelora_prefix": 100.0, ...}, "rows": [{...}]}

trace_strict      the TRACE repository
treelora_prefix   the TreeLoRA repository
moram             the MoRAM repository
lenient           ours: what the answer means, however it is written
"""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers.base import VARIANTS, OriginalCrash, Score
from codyra_llm.evaluation.scorers.choice import CHOICE, CHOICE_EXPLAINED
from codyra_llm.evaluation.scorers.edit import EDIT_SIMILARITY
from codyra_llm.evaluation.scorers.exact import ACCURACY
from codyra_llm.evaluation.scorers.numeric import NUMERIC
from codyra_llm.evaluation.scorers.rouge import ROUGE_L
from codyra_llm.evaluation.scorers.sari import SARI

__all__ = ["SCORERS", "VARIANTS", "score_rows"]

LOG = logging.getLogger(__name__)

SCORERS: dict[str, dict[str, Score]] = {
    "accuracy": ACCURACY,
    "choice": CHOICE,
    "choice_explained": CHOICE_EXPLAINED,
    "numeric": NUMERIC,
    "rouge_l": ROUGE_L,
    "edit_similarity": EDIT_SIMILARITY,
    "sari": SARI,
}


def score_rows(scorer: str, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Score predictions in every variant, in percent of the task's headline metric.

    Args:
        scorer: a name in `SCORERS`.
        rows: each with "prompt", "prediction" and "reference".

    Returns:
        {"n": rows, "totals": {variant: percent}, "rows": [{variant: percent}]}; a total is the mean over all rows.
        A row on which the published code would stop with an exception counts 0 in that variant, with a warning.
    """
    if scorer not in SCORERS:
        raise UserError(f"unknown scorer {scorer!r}; known: {', '.join(SCORERS)}")
    if not rows:
        raise UserError(f"scorer {scorer}: no rows to score")
    crashes: dict[tuple[str, str], list[int]] = {}
    scores = [_score_row(SCORERS[scorer], index, row, crashes) for index, row in enumerate(rows)]
    for (variant, reason), indices in crashes.items():
        places = ", ".join(map(str, indices))
        LOG.warning("%s: the published code stops with %s; scored 0: row %s", variant, reason, places)
    totals = {variant: sum(row[variant] for row in scores) / len(rows) for variant in VARIANTS}
    return {"n": len(rows), "totals": totals, "rows": scores}


def _score_row(
    variants: Mapping[str, Score], index: int, row: Mapping[str, str], crashes: dict[tuple[str, str], list[int]]
) -> dict[str, float]:
    as_written = row["prompt"], row["prediction"], row["reference"]
    # a letter with its accent is one character or two, by the tokenizer's choice; ours compares what they show
    composed = tuple(unicodedata.normalize("NFC", text) for text in as_written)
    percent: dict[tuple[Score, tuple[str, ...]], float] = {}  # variants share functions, and SARI is slow
    found = {}
    for variant, score in variants.items():
        texts = composed if variant == "lenient" else as_written
        if (score, texts) not in percent:
            try:
                percent[score, texts] = score(*texts)
            except OriginalCrash as crash:
                crashes.setdefault((variant, str(crash)), []).append(index)
                percent[score, texts] = 0.0
        found[variant] = percent[score, texts]
    return {variant: found[variant] for variant in VARIANTS}
