"""Scores of general ability, and their change by learning."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SuiteScore:
    """A model's score on a suite.

    Attributes:
        score: 0 to 100 if `unit` is "percent".
        stderr: standard error of the sample; None if the metric has none.
        unit: "percent", or the metric's name if lower is better.
        higher_is_better: whether a higher value of the metric is better.
        metric: the harness's name of the metric.
        items: number of items that were asked.
    """

    score: float
    stderr: float | None
    unit: str
    higher_is_better: bool
    metric: str
    items: int


@dataclass(frozen=True)
class SuiteFailure:
    """A suite that could not be measured; `failed` is the reason."""

    failed: str


SuiteScores = Mapping[str, SuiteScore | SuiteFailure]  # by suite


def general_delta(scores: SuiteScores, base: SuiteScores) -> float | None:
    """Returns the mean over suites of the score minus the base model's, in points; None if no suite has both scores.

    Suites that are not measured in percent, such as perplexity, are left out.
    """
    ours, theirs = _in_percent(scores), _in_percent(base)
    changes = [score - theirs[suite] for suite, score in ours.items() if suite in theirs]
    return sum(changes) / len(changes) if changes else None


def _in_percent(scores: SuiteScores) -> dict[str, float]:
    return {
        suite: found.score
        for suite, found in scores.items()
        if isinstance(found, SuiteScore) and found.unit == "percent"
    }
