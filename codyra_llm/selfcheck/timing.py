"""Timing of contestants in interleaved rounds, and their ratios within a round."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Returns the seconds of each contestant in each round; all run in each round, so that a disturbance affects all.

    It prints a line to stderr after each round.
    """
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(1, rounds + 1):
        for name, run in contestants.items():
            seconds[name].append(seconds_of(run))
        of_round = sum(times[-1] for times in seconds.values())
        print(f"round {turn} of {rounds}: {of_round:.1f} s", file=sys.stderr, flush=True)
    return seconds


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the seconds of one run, including the work that it has queued on a GPU."""
    settle()
    began = time.perf_counter()
    run()
    settle()
    return time.perf_counter() - began


def settle() -> None:
    """Waits for the GPU to finish, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratios(seconds: dict[str, list[float]], of: str) -> dict[str, dict[str, float]]:
    """Returns median, 10th and 90th percentile of each contestant's time relative to that of `of` in the same round."""
    found = {}
    for name, times in seconds.items():
        each = sorted(a / b for a, b in zip(times, seconds[of], strict=True))
        tenth = len(each) // 10
        found[name] = {"median": statistics.median(each), "p10": each[tenth], "p90": each[-1 - tenth]}
    return found


def compared(seconds: dict[str, list[float]], of: str) -> dict[str, dict[str, object]]:
    """Returns the table columns of each contestant, from `ratios`."""
    return {
        name: {
            f"time / {of}": each["median"],
            "10th to 90th percentile": f"{each['p10']:.3f} to {each['p90']:.3f}",
        }
        for name, each in ratios(seconds, of).items()
    }
