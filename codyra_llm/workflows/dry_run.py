"""A run up to the point before loading the model: its table, and a training row of each task as the model reads it."""

import os
import sys
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from codyra_llm.config import RunConfig, describe
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.find import find_domain
from codyra_llm.example import Example
from codyra_llm.planning.data_table import describe_plan
from codyra_llm.planning.run_plan import plan_run
from codyra_llm.report.tracking import check_tracking

READ, LEARNED, PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[0m"


def dry_run(config: RunConfig) -> None:
    """Prints what a run would do, on rank 0; reads no weights and writes nothing.

    Raises:
        UserError: the configuration, data or model is invalid.
    """
    config = find_domain(config).settled(config)
    check_tracking(config)
    ranks = Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), torch.device("cpu"))
    plan = plan_run(config, ranks)
    if not ranks.is_main:
        return
    print(f"settings: {describe(config)}; all others by default")
    for note in plan.notes:
        print(f"note: {note}")
    print(f"\n{describe_plan(plan, config, ranks.size)}")
    colored = sys.stdout.isatty()
    print(f"\nOne training row of each task; what is learned is {'green' if colored else 'between >> and <<'}")
    for batches in plan.batches:
        row = batches.own[0]
        text = plan.domain.described(plan.source, row) or _rendered(plan.source.tokenizer, row, colored)
        print(f"\n{batches.task}:\n{text}")


def _rendered(tokenizer: PreTrainedTokenizerBase, example: Example, colored: bool) -> str:
    """Returns the text of an example with its special tokens; learned parts are colored or between >> and <<."""
    read, learned = ((READ, PLAIN), (LEARNED, PLAIN)) if colored else (("", ""), (">>", "<<"))
    text = ""
    for ids, is_learned in _segments(example):
        before, after = learned if is_learned else read
        text += f"{before}{tokenizer.decode(ids)}{after}"
    return text


def _segments(example: Example) -> Iterator[tuple[list[int], bool]]:
    """Yields the parts of an example: (ids, whether they are learned)."""
    yield example.prompt, False
    at = 0
    for begin, end in example.unlearned:
        yield example.answer[at:begin], True
        yield example.answer[begin:end], False
        at = end
    yield example.answer[at:], True
