"""Times merging one branch of rank 16 into a 4096 x 11008 weight, compared with reading and writing it in fp32 once.

    python -m benchmarks.merge

All contestants run in turn in every round, in one process. `PEFT` is the sum that PEFT's merge computes: the weight
plus the whole product. Operations, operator traffic and extra memory (growth of the peak) come from one additional
merge each.
"""

import argparse

import torch

from benchmarks.counting import costs
from benchmarks.rounds import report
from codyra_llm.selfcheck.bandwidth import merges
from codyra_llm.selfcheck.timing import compared, interleave


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    contestants = merges(4096, 11008)
    times = compared(interleave(contestants, options.rounds), "read and write, fp32")
    rows = [{"contestant": name, **times[name], **costs(run)} for name, run in contestants.items()]
    report(f"merge of one 4096 x 11008 weight, rank 16, {options.rounds} rounds", rows, options.json)


if __name__ == "__main__":
    main()
