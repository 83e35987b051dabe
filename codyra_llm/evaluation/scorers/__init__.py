"""Scorers by name: each scores stored predictions in every published variant and in a lenient one.

    score_rows("choice", [{"prompt": ..., "prediction": "B.", "reference": "B"}])
    -> {"n": 1, "totals": {"trace_strict": 0.0, "treelora_prefix": 100.0, ...}, "rows": [{...}]}

trace_strict      the TRACE repository
treelora_prefix   the TreeLoRA repository
moram             the MoRAM repository
lenient           this project's: the meaning of the answer, in any notation
"""

import importlib
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers.base import VARIANTS, OriginalCrash, Score
from codyra_llm.evaluation.scorers.choice import CHOICE, CHOICE_EXPLAINED
from codyra_llm.evaluation.scorers.edit import EDIT_SIMILARITY
from codyra_llm.evaluation.scorers.exact import ACCURACY
from codyra_llm.evaluation.scorers.numeric import NUMERIC
from codyra_llm.evaluation.scorers.overlap import BLEU, CHRF, F1, JSON, same_in_all
from codyra_llm.evaluation.scorers.rouge import ROUGE_L
from codyra_llm.evaluation.scorers.sari import SARI

__all__ = ["SCORERS", "VARIANTS", "check_scorer", "find_scorer", "score_rows"]

LOG = logging.getLogger(__name__)

SCORERS: dict[str, dict[str, Score]] = {
    "accuracy": ACCURACY,
    "choice": CHOICE,
    "choice_explained": CHOICE_EXPLAINED,
    "numeric": NUMERIC,
    "rouge_l": ROUGE_L,
    "edit_similarity": EDIT_SIMILARITY,
    "sari": SARI,
    "f1": F1,
    "bleu": BLEU,
    "chrf": CHRF,
    "json": JSON,
}


def check_scorer(name: str, allow_code: bool, how: str) -> None:
    """Raises UserError if the scorer is unknown, or is user code that is not allowed; `how` tells how to allow it."""
    if name not in SCORERS and ":" in name and not name.startswith("regex:") and not allow_code:
        raise UserError(f"scorer {name} is code of its own; read it, and set {how}")
    find_scorer(name)


def find_scorer(name: str) -> dict[str, Score]:
    """Returns the functions of a scorer by variant: a built-in one, `regex:PATTERN`, or a user's `module:function`.

    A user's function takes (prompt, prediction, reference) and returns percent. Its module, which may be in the working
    folder, is imported, which runs its code.

    Raises:
        UserError: there is no such scorer, or it is not callable.
    """
    if name in SCORERS:
        return SCORERS[name]
    if name.startswith("regex:"):
        return same_in_all(_by_pattern(name))
    module, _, function = name.partition(":")
    if not function:
        raise UserError(
            f'unknown scorer "{name}"; there are {", ".join(SCORERS)}, regex:PATTERN, or module:function of your own'
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's code may do anything
        raise UserError(f"scorer {name}: cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise UserError(f"scorer {name}: is no function of (prompt, prediction, reference)")
    return same_in_all(_own(name, found))


def _by_pattern(name: str) -> Score:
    """Returns the score of `regex:PATTERN`: 100 if its first match in an answer (or group 1 of it) is the reference."""
    try:
        pattern = re.compile(name.partition(":")[2], re.MULTILINE)
    except re.error as error:
        raise UserError(f"scorer {name}: not a regular expression: {error}") from None

    def score(prompt: str, prediction: str, reference: str) -> float:
        found = pattern.search(prediction)
        return 100.0 * (found is not None and (found[1 if pattern.groups else 0] or "").strip() == reference.strip())

    return score


def _own(name: str, function: Callable[[str, str, str], Any]) -> Score:
    def score(prompt: str, prediction: str, reference: str) -> float:
        try:
            found = float(function(prompt, prediction, reference))
        except Exception as error:
            raise UserError(f"scorer {name}: failed on an answer: {type(error).__name__}: {error}") from error
        if not 0 <= found <= 100:
            raise UserError(f"scorer {name}: gave {found}; a score is percent, from 0 to 100")
        return found

    return score


def score_rows(scorer: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores predictions in every variant, in percent of the task's headline metric.

    Args:
        scorer: a name as for `find_scorer`.
        rows: each with "prompt", "prediction" and "reference"; with several "references", the best score counts.

    Returns:
        {"n": rows, "totals": {variant: percent}, "rows": [{variant: percent}]}; a total is the mean over all rows.
        A row on which the published code would raise an exception counts as 0 in that variant, with a warning.
    """
    functions = find_scorer(scorer)
    if not rows:
        raise UserError(f"scorer {scorer}: no rows to score")
    crashes: dict[tuple[str, str], list[int]] = {}
    scores = [_score_row(functions, index, row, crashes) for index, row in enumerate(rows)]
    for (variant, reason), indices in crashes.items():
        places = ", ".join(map(str, indices))
        LOG.warning("%s: the published code stops with %s; scored 0: row %s", variant, reason, places)
    totals = {variant: sum(row[variant] for row in scores) / len(rows) for variant in VARIANTS}
    return {"n": len(rows), "totals": totals, "rows": scores}


def _score_row(
    variants: Mapping[str, Score], index: int, row: Mapping[str, Any], crashes: dict[tuple[str, str], list[int]]
) -> dict[str, float]:
    references = row.get("references") or [row["reference"]]
    texts = [(row["prompt"], row["prediction"], reference) for reference in references]
    of_references = [_score_texts(variants, index, each, crashes) for each in texts]
    return {variant: max(found[variant] for found in of_references) for variant in VARIANTS}


def _score_texts(
    variants: Mapping[str, Score],
    index: int,
    as_written: tuple[str, str, str],
    crashes: dict[tuple[str, str], list[int]],
) -> dict[str, float]:
    # an accented letter may be one character or two, depending on the tokenizer; `lenient` treats both as equal
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
