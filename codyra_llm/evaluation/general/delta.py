"""What learning did to general ability."""

from typing import Any


def general_delta(scores: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Mean over suites of the score minus the base model's, in points; None where no suite has both.

    Suites that are not measured in percent, perplexity for one, stand beside it.
    """
    changes = [
        found["score"] - base[suite]["score"]
        for suite, found in scores.items()
        if in_percent(found) and in_percent(base.get(suite, {}))
    ]
    return sum(changes) / len(changes) if changes else None


def in_percent(found: dict[str, Any]) -> bool:
    """Whether a suite was measured, in percent."""
    return found.get("unit") == "percent"
