"""Two ranks plan a run at the same moment; each writes which texts it tokenized."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from codyra_llm.config import load_config
from codyra_llm.distributed.ranks import start
from codyra_llm.planning.run_plan import plan_run
from tests.distributed.forked import fork_ranks


def plan(model: str, output: str, rank: int) -> int:
    config = load_config(None, {"model.name_or_path": model, "train.global_batch_size": 8})
    world, texts, tokenize = start(), [], PreTrainedTokenizerBase.__call__

    def counted(self: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
        texts.append(text)
        return tokenize(self, text, **options)

    PreTrainedTokenizerBase.__call__ = counted
    dist.barrier()
    planned = plan_run(config, world)
    (Path(output) / f"{rank}.json").write_text(json.dumps({"texts": texts, "run": planned.name(config)}))
    return 0


def run_jobs(jobs: list[dict[str, str]]) -> list[list[int]]:
    """Runs jobs: {"model": folder, "output": folder}; returns the exit statuses of their ranks."""
    return [fork_ranks(2, partial(plan, job["model"], job["output"]), job["output"] + "/log") for job in jobs]
