"""Merging one branch of rank 16 into a 4096 x 11008 weight, beside reading and writing that weight in fp32 once.

    python -m benchmarks.merge

Contestants take turns within a round, in one process. `PEFT` is the sum that its merge computes: the weight plus the
whole product. Extra memory is the growth of the process' peak (VmHWM, reset before) over one more merge.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.rounds import interleave, ratios, report
from codyra_llm.adapter.merge import add_delta_in_place


def extra_bytes(run: Callable[[], object]) -> int:
    """How far the resident memory of this process rises above where it stands, while `run` runs."""
    run()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    narrow, wide = nn.Linear(11008, 4096, dtype=torch.bfloat16), nn.Linear(11008, 4096)
    B, A = torch.randn(4096, 16) * 1e-3, torch.randn(16, 11008)
    weight = wide.weight.detach()
    contestants: dict[str, Callable[[], object]] = {
        "read and write, fp32": lambda: weight.mul_(1.0),
        "ours, fp32": torch.no_grad()(lambda: add_delta_in_place(wide, B, A)),
        "ours, bf16": torch.no_grad()(lambda: add_delta_in_place(narrow, B, A)),
        "PEFT, fp32": lambda: weight.add_(B @ A),
    }
    found = ratios(interleave(contestants, options.rounds), "read and write, fp32")
    rows = [
        {
            "contestant": name,
            "time / read and write": found[name]["median"],
            "10th to 90th percentile": f"{found[name]['p10']:.2f} to {found[name]['p90']:.2f}",
            "extra memory, MB": round(extra_bytes(run) / 1e6),
        }
        for name, run in contestants.items()
    ]
    report(f"merge of one 4096 x 11008 weight, rank 16, {options.rounds} rounds", rows, options.json)


if __name__ == "__main__":
    main()
