"""Merging one branch of rank 16 into a 4096 x 11008 weight, beside reading and writing that weight in fp32 once.

    python -m benchmarks.merge

Contestants take turns within a round, in one process. `PEFT` is the sum that its merge computes: the weight plus the
whole product. Operations, operator traffic and extra memory (growth of the peak) are those of one more merge each.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.counting import costs
from benchmarks.rounds import compared, interleave, report
from codyra_llm.adapter.merge import add_delta_in_place


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
    times = compared(interleave(contestants, options.rounds), "read and write, fp32")
    rows = [{"contestant": name, **times[name], **costs(run)} for name, run in contestants.items()]
    report(f"merge of one 4096 x 11008 weight, rank 16, {options.rounds} rounds", rows, options.json)


if __name__ == "__main__":
    main()
