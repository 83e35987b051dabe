"""Trains a task and measures general ability, with the branches on the live model and after the merge.

python -m tests.distributed.general_worker < JSON list of {"config": {...}, "ranks": 1, "broken": rank}; answers are in
the run folders.
"""

import json
import sys
from typing import Any

from codyra_llm.adapter.merge import apply_deltas
from codyra_llm.config import load_config
from codyra_llm.distributed.ranks import on_rank_0, start
from codyra_llm.engine.train import train_task
from codyra_llm.engine.zero import add_delta, load_base
from codyra_llm.methods import METHODS
from codyra_llm.planning.run_plan import plan_run
from codyra_llm.report.folder import RunFolder
from codyra_llm.workflows import session
from codyra_llm.workflows.general_ability import score_general
from codyra_llm.workflows.session import stoppable
from tests.distributed.forked import fork_ranks


def measure(settings: dict) -> None:
    """What one rank does."""
    config = load_config(None, settings)
    world = start()
    plan = plan_run(config, world)
    folder: Any = on_rank_0(world, lambda: RunFolder(config))
    on_rank_0(world, lambda: folder.open())
    model = load_base(config, plan.deepspeed_json, world, print)
    method = METHODS[config.method](config)
    batches = plan.batches[0]
    ready = method.prepare(model, plan.stream.names[0], batches.total_steps)
    train_task(model, ready.optimizer, ready.schedule, batches, config.train, plan.deepspeed_json, world)
    with stoppable(world, folder) as stop:
        rest = (plan.tokenizer, plan.suites, config.evaluate, world, folder, stop)
        live = score_general(model, *rest, "live")
        _, updates = method.finish(model)
        apply_deltas(model, updates, add_delta)
        merged = score_general(model, *rest, "merged")
    on_rank_0(world, lambda: folder.write_results({"live": live, "merged": merged}))


def run_way(config: dict, ranks: int, broken: int | None = None) -> list[int]:
    """Forks the ranks of one way; on a broken one the model fails."""

    def fail(*_: Any) -> None:
        raise MemoryError("no room on this rank")

    def work(rank: int) -> int:
        if rank == broken:
            session.answer_questions = fail
        measure(config)
        return 0

    return fork_ranks(ranks, work, config["output_dir"] + ".log")


if __name__ == "__main__":
    print(json.dumps([run_way(**job) for job in json.load(sys.stdin)]))
