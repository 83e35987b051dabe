"""What learning did to general ability."""

from typing import Any


def general_delta(scores: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Mean over suites of the score minus the base model's, in points; None where no suite has both."""
    changes = [
        scores[suite]["score"] - base[suite]["score"]
        for suite in scores
        if "score" in scores[suite] and "score" in base.get(suite, {})
    ]
    return sum(changes) / len(changes) if changes else None
