"""Scores on the built-in sample, recorded when the scorers agreed with the published code on the benchmark's rows."""

import json
from pathlib import Path

import pytest

from codyra_llm.evaluation.scorers import VARIANTS, score_rows
from tests.conftest import SAMPLE

SCORERS = {
    "20Minuten": "sari",
    "C-STANCE": "choice",
    "FOMC": "choice",
    "MeetingBank": "rouge_l",
    "NumGLUE-cm": "numeric",
    "NumGLUE-ds": "numeric",
    "Py150": "edit_similarity",
    "ScienceQA": "choice_explained",
}
CHANGES = {
    "exact": lambda answer: answer,
    "lower case": str.lower,
    "first half": lambda answer: answer[: max(1, len(answer) // 2)],
    "with more": lambda answer: f" {answer}. That is all.",
    "reversed words": lambda answer: " ".join(reversed(answer.split())),
    "empty": lambda answer: "",
}


def scores_of(task: str) -> list[list[float]]:
    """Returns, for each row and each change of its answer, the score in every variant."""
    rows = json.loads((SAMPLE / task / "test.json").read_text(encoding="utf-8"))
    answers = [
        {"prompt": row["prompt"], "reference": row["answer"], "prediction": change(row["answer"])}
        for row in rows
        for change in CHANGES.values()
    ]
    scored = score_rows(SCORERS[task], answers)["rows"]
    return [[round(scores[variant], 6) for variant in VARIANTS] for scores in scored]


@pytest.mark.parametrize("task", SCORERS)
def test_scores_are_those_that_were_recorded(golden: Path, task: str) -> None:
    recorded = json.loads((golden / "sample_scores.json").read_text())[task]
    assert len({tuple(scores) for scores in recorded}) > 2
    for ours, theirs in zip(scores_of(task), recorded, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
