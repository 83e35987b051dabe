"""What the speed benchmarks share: contestants in turn, ratios within a round, and how a result is printed."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch

PACKAGES = ("torch", "transformers", "peft", "deepspeed")


def interleave(contestants: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; in a round all run in turn, so that what slows one slows all.

    A line on stderr says how far it is.
    """
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(1, rounds + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
        of_round = sum(times[-1] for times in seconds.values())
        print(f"round {turn} of {rounds}: {of_round:.1f} s", file=sys.stderr, flush=True)
    return seconds


def ratios(seconds: dict[str, list[float]], of: str) -> dict[str, dict[str, float]]:
    """For each contestant the median, 10th and 90th percentile of its time over that of `of` in the same round."""
    found = {}
    for name, times in seconds.items():
        each = sorted(a / b for a, b in zip(times, seconds[of], strict=True))
        tenth = len(each) // 10
        found[name] = {"median": statistics.median(each), "p10": each[tenth], "p90": each[-1 - tenth]}
    return found


def compared(seconds: dict[str, list[float]], of: str) -> dict[str, dict[str, object]]:
    """For each contestant the columns of a table that `ratios` gives."""
    return {
        name: {
            f"time / {of}": each["median"],
            "10th to 90th percentile": f"{each['p10']:.3f} to {each['p90']:.3f}",
        }
        for name, each in ratios(seconds, of).items()
    }


def versions() -> dict[str, str]:
    """Of Python, of the packages that a figure depends on, and how many threads computed it."""
    found = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def report(title: str, rows: list[dict[str, object]], as_json: bool) -> None:
    """Prints rows that share their keys as a Markdown table, or all of it as one line of JSON."""
    if as_json:
        print(json.dumps({"title": title, "rows": rows, "versions": versions()}), flush=True)
        return
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{v:.3f}' if isinstance(v, float) else str(v) for v in row.values())} |")
    print(f"\n{', '.join(f'{name} {value}' for name, value in versions().items())}", flush=True)
