"""Scoring a model on the tasks of a plan: after a task of a run, or as it is, without training."""

import hashlib
import math
from collections.abc import Sequence
from itertools import count

import torch
from transformers import PreTrainedModel

from codyra_llm.config import EvaluateConfig, RunConfig, describe
from codyra_llm.data.stream import Task
from codyra_llm.distributed.ranks import start
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import TaskScores, evaluate_tasks
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.planning.run_plan import RunPlan, check_ranks_agree, plan_run
from codyra_llm.report.folder import scores_folder
from codyra_llm.report.tables import general_table
from codyra_llm.results.provenance import provenance
from codyra_llm.results.schema import ModelScores
from codyra_llm.text import align
from codyra_llm.workflows.asking import asking
from codyra_llm.workflows.general_ability import base_identity, general_of_model, score_general, write_scores
from codyra_llm.workflows.session import Session, open_session


def score_tasks(
    session: Session,
    model: PreTrainedModel,
    plan: RunPlan,
    which: Sequence[int],
    config: EvaluateConfig,
    name: str,
    trained: bool,
) -> list[TaskScores]:
    """Scores tasks of a plan, by number; each rank answers its part of the rows.

    Answers are saved in the folder under `name` as they are given, and not asked for again.

    Raises:
        UserError: `trained` is false, and the model gives a true answer no finite likelihood.
        Stopped: the command was asked to stop.
    """
    rows = [plan.test_examples[i] for i in which]
    total = sum(map(len, rows))
    with asking(session, model, plan.source.tokenizer, config, name, f"scoring {name}", total) as ask:
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


def score_model(config: RunConfig) -> ModelScores:
    """Scores config.model on every task of the configuration and, where suites are configured, on general ability.

    Leaves in config.output_dir: config.yaml, results.json and predictions/model.<task>.jsonl.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the configuration, data or model is unfit, or output_dir holds something else.
        Stopped: it was asked to stop, as a run is; started again, it resumes.
    """
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, ranks, to_train=False)
    check_ranks_agree(config, ranks, plan.source, plan)
    with open_session(ranks, lambda: scores_folder(config), "scores.log") as session:
        session.notes += plan.notes
        name = f"model-{_digest(config, plan)}"
        model = session.load(plan.source, config, plan.deepspeed_json, plan.end_ids)
        session.open(describe(config), resumed=config.resume == "auto")
        tasks = range(len(plan.stream))
        scored = score_tasks(session, model, plan, tasks, config.evaluate, name, trained=False)
        identity = base_identity(session, config, plan.source, model) if plan.suites else None
        found = score_general(
            session, plan.source, model, plan.suites, plan.general_template, config.evaluate, "model", identity
        )
        by_task = dict(zip(plan.stream.names, scored, strict=True))
        scores = {variant: {task: each.totals[variant] for task, each in by_task.items()} for variant in VARIANTS}
        results = ModelScores(
            **provenance(config, plan.deepspeed_json, model, ranks.size),
            data=plan.data(config),
            tasks=plan.stream.names,
            scores=scores,
            mean={variant: sum(of_tasks.values()) / len(of_tasks) for variant, of_tasks in scores.items()},
            answer_nll={task: each.nll if math.isfinite(each.nll) else None for task, each in by_task.items()},
            further={task: each.further for task, each in by_task.items() if each.further},
            general=general_of_model(plan.suites, found),
        )

        def write() -> None:
            for task, each in by_task.items():
                session.folder.write_predictions("model", task, each.rows)
            tables = [_table(results), *([general_table(results.general)] if found else [])]
            write_scores(session.folder, results, tables)

        session.on_rank_0(write)
    return results


def _digest(config: RunConfig, plan: RunPlan) -> str:
    """Changes with the settings, the data, and the model's weights."""
    named = f"{plan.name(config)} {plan.source.sha256}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def _table(results: ModelScores) -> str:
    rows = [["task", *VARIANTS, "NLL"]]
    for task in results.tasks:
        of_task = [f"{results.scores[variant][task]:.1f}" for variant in VARIANTS]
        nll = results.answer_nll[task]
        rows.append([task, *of_task, "" if nll is None else f"{nll:.3f}"])
    return align([*rows, ["mean", *(f"{results.mean[variant]:.1f}" for variant in VARIANTS), ""]])
