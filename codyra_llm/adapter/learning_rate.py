"""The learning rate over one task."""

import math


def cosine_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Returns the share of the peak rate at step `step` (from 0): linear warm-up, then a half cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
