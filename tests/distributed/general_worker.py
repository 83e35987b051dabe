"""Trains a task and measures general ability, with the branches on the live model and after the merge."""

import dataclasses
import json
from typing import Any

from codyra_llm.adapter.merging import apply_deltas
from codyra_llm.config import load_config
from codyra_llm.distributed.ranks import start
from codyra_llm.domains.text.domain import Text
from codyra_llm.engine.train import train_task
from codyra_llm.engine.zero import add_delta
from codyra_llm.files import write_text
from codyra_llm.methods import METHODS
from codyra_llm.planning.run_plan import plan_run
from codyra_llm.report.folder import RunFolder
from codyra_llm.workflows.general_ability import score_general
from codyra_llm.workflows.session import open_session
from tests.distributed.forked import fork_ranks


def measure(settings: dict[str, Any]) -> None:
    """Runs one rank."""
    config = load_config(None, settings)
    world = start()
    plan = plan_run(config, world)
    with open_session(world, lambda: RunFolder(config), "train.log") as session:
        model = session.load(plan.source, config, plan.deepspeed_json)
        session.open()
        method = METHODS[config.method](config)
        batches = plan.batches[0]
        ready = method.prepare(model, plan.stream.names[0], batches.total_steps)
        train_task(model, ready.optimizer, ready.schedule, batches, config.train, plan.deepspeed_json, world)
        rest = (plan.source, model, plan.suites, None, config.evaluate)
        live = score_general(session, *rest, "live")
        _, updates = method.finish(model)
        apply_deltas(model, updates, add_delta)
        merged = score_general(session, *rest, "merged")
        scores = {
            name: {suite: dataclasses.asdict(score) for suite, score in found.items()}
            for name, found in (("live", live), ("merged", merged))
        }
        session.on_rank_0(lambda: write_text(session.folder.path / "results.json", json.dumps(scores)))


def run_way(config: dict[str, Any], ranks: int, broken: int | None = None) -> list[int]:
    """Forks the ranks of one way of running; on the rank `broken`, the model fails."""

    def fail(*_: Any) -> None:
        raise MemoryError("no room on this rank")

    def work(rank: int) -> int:
        if rank == broken:
            Text.answer = staticmethod(fail)
        measure(config)
        return 0

    return fork_ranks(ranks, work, config["output_dir"] + ".log")


def run_jobs(jobs: list[dict[str, Any]]) -> list[list[int]]:
    """Runs jobs: {"config": {...}, "ranks": 1, "broken": rank}; their answers are in the run folders."""
    return [run_way(**job) for job in jobs]
