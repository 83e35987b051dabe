"""Printing of the speed benchmarks' results."""

import json
import platform
from importlib.metadata import version

import torch

from codyra_llm.selfcheck.report import table

PACKAGES = ("torch", "transformers", "peft", "deepspeed")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a figure depends on, and the number of threads."""
    found = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def report(title: str, rows: list[dict[str, object]], as_json: bool) -> None:
    """Prints rows with the same keys as a Markdown table, or title, rows and versions as one line of JSON."""
    if as_json:
        print(json.dumps({"title": title, "rows": rows, "versions": versions()}), flush=True)
        return
    print(f"\n{title}\n\n{table(rows)}")
    print(f"\n{', '.join(f'{name} {value}' for name, value in versions().items())}", flush=True)
