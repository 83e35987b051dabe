"""What is measured of general ability, and what learning did to it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SuiteScore:
    """A model's score on a suite.

    Attributes:
        score: 0 to 100 where `unit` is "percent".
        stderr: standard error of the sample; None where the metric has none.
        unit: "percent", or the metric's name where lower is better.
        higher_is_better: of the metric.
        metric: the harness's name of it.
        items: how many were asked.
    """

    score: float
    stderr: float | None
    unit: str
    higher_is_better: bool
    metric: str
    items: int


@dataclass(frozen=True)
class SuiteFailure:
    """A suite that could not be measured; `failed` says why."""

    failed: str


SuiteScores = Mapping[str, SuiteScore | SuiteFailure]  # by suite


def general_delta(scores: SuiteScores, base: SuiteScores) -> float | None:
    """Mean over suites of the score minus the base model's, in points; None where no suite has both.

    Suites that are not measured in percent, perplexity for one, stand beside it.
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
