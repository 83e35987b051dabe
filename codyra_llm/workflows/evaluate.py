"""Scoring a model on the tasks of a plan: after a task of a run, or as it is, without training."""

import hashlib
import math
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedModel

from codyra_llm.config import EvaluateConfig, RunConfig, describe
from codyra_llm.data.stream import Task
from codyra_llm.distributed.ranks import World, on_rank_0, start
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.engine.zero import load_base
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import TaskScores, evaluate_tasks
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.models.fingerprint import model_hash
from codyra_llm.planning.run_plan import RunPlan, check_ranks_agree, plan_run
from codyra_llm.report.folder import RunFolder, scores_folder, start_log
from codyra_llm.report.tables import general_table
from codyra_llm.results import new_results, of_a_model
from codyra_llm.text import align
from codyra_llm.workflows.general_ability import base_identity, score_general
from codyra_llm.workflows.session import asking, stoppable


def score_tasks(
    model: PreTrainedModel,
    plan: RunPlan,
    which: Sequence[int],
    config: EvaluateConfig,
    world: World,
    folder: RunFolder | None,
    stop: StopRequest,
    row_name: str,
    trained: bool,
) -> list[TaskScores]:
    """Scores tasks of a plan, by number; each rank answers its share of the rows.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and not asked for again.

    Raises:
        UserError: `trained` is false, and the model gives a true answer no finite likelihood.
        Stopped: the run was asked to stop.
    """
    rows = [plan.test_examples[i] for i in which]
    with asking(
        model,
        plan.tokenizer,
        config,
        world,
        folder,
        stop,
        row_name,
        f"scoring {row_name}",
        sum(map(len, rows)),
    ) as ask:
        scored = evaluate_tasks([plan.stream.tasks[i] for i in which], rows, config, ask)
    if not trained:
        for i, scores in zip(which, scored, strict=True):
            _check_likelihoods(plan.stream.tasks[i], scores, model.dtype)
    return scored


def _check_likelihoods(task: Task, scores: TaskScores, dtype: torch.dtype) -> None:
    for number, row in zip(task.row_numbers.get("test") or count(1), scores.rows, strict=False):
        if row["nll"] is None:
            raise UserError(
                f"task {task.name} test row {number}: the model's loss on the answer is not finite in "
                f"{str(dtype).removeprefix('torch.')}, before anything was learned: its weights are damaged, or its "
                "values leave the range of the dtype; try another model.dtype"
            )


def score_model(config: RunConfig) -> dict[str, Any]:
    """Scores config.model on every task of the configuration.

    Leaves in config.output_dir: config.yaml, results.json and predictions/model.<task>.jsonl.

    Returns:
        What stands in results.json: what a run says of itself, `scores` (variant -> task -> 0 to 100), `mean`
        (variant -> mean over tasks), `answer_nll` (task -> nats per token of the true answers; None where they are not
        finite) and, where suites of general ability are configured, `general` as `score_suites` gives it.

    Raises:
        UserError: the configuration, data or model is unfit, or output_dir holds something else.
        Stopped: it was asked to stop, as a run is; started again, it goes on.
    """
    world = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, world, to_train=False)
    check_ranks_agree(config, world, plan)
    folder: Any = on_rank_0(world, lambda: scores_folder(config))
    on_rank_0(world, lambda: folder.forget_stops())
    notes = list(plan.notes)
    which, row_name = range(len(plan.stream)), f"model-{_journal_name(config, plan)}"
    with stoppable(world, folder) as stop:
        model = load_base(config, plan.deepspeed_json, world, notes.append)
        on_rank_0(world, lambda: folder.open(resumed=config.resume == "auto"))
        log = start_log(folder.path / "scores.log" if folder else None)
        log.info(f"settings: {describe(config)}; all others by default")
        for note in notes:
            log.warning(note)
        scored = score_tasks(model, plan, which, config.evaluate, world, folder, stop, row_name, trained=False)
        whom = base_identity(config, model, plan.tokenizer, world) if plan.suites else None
        general = score_general(model, plan.tokenizer, plan.suites, config.evaluate, world, folder, stop, "model", whom)
    by_task = dict(zip(plan.stream.names, scored, strict=True))
    scores = {variant: {task: each.totals[variant] for task, each in by_task.items()} for variant in VARIANTS}
    known = new_results(config, plan, model, world.size)
    results = of_a_model(config, plan.deepspeed_json, model, world.size) | {
        "data": known["data"],
        "tasks": known["tasks"],
        "scores": scores,
        "mean": {variant: sum(of_tasks.values()) / len(of_tasks) for variant, of_tasks in scores.items()},
        "answer_nll": {task: each.nll if math.isfinite(each.nll) else None for task, each in by_task.items()},
    }
    if plan.suites:
        results["general"] = {"items": known["general"]["items"], "scores": {"model": general}}

    def write() -> None:
        for task, each in by_task.items():
            folder.write_predictions("model", task, each.rows)
        folder.write_results(results)
        folder.drop_answers()
        print(_table(results))
        if general:
            print(f"\n{general_table({'model': general})}")
        print(f"\nall results are in {folder.path}")

    on_rank_0(world, write)
    return results


def _journal_name(config: RunConfig, plan: RunPlan) -> str:
    """Changes with the settings, the data, and the model's weights."""
    named = f"{plan.name(config)} {model_hash(config.model.name_or_path)}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def _table(results: dict[str, Any]) -> str:
    rows = [["task", *VARIANTS, "NLL"]]
    for task in results["tasks"]:
        of_task = [f"{results['scores'][variant][task]:.1f}" for variant in VARIANTS]
        nll = results["answer_nll"][task]
        rows.append([task, *of_task, "" if nll is None else f"{nll:.3f}"])
    return align([*rows, ["mean", *(f"{results['mean'][variant]:.1f}" for variant in VARIANTS), ""]])
