"""Scores a model on the tasks of a plan: after a task of a run, or without training."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from codyra_llm.config import EvaluateConfig, GeneralConfig, RunConfig, describe
from codyra_llm.data.stream import Task
from codyra_llm.distributed.ranks import start
from codyra_llm.domains.find import find_domain
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.evaluation.matrix import Stage, matrix_metrics
from codyra_llm.generation.generate import Ask
from codyra_llm.planning.run_plan import RunPlan, check_ranks_agree, plan_run
from codyra_llm.report.folder import RunFolder, scores_folder
from codyra_llm.report.page.run import write_report
from codyra_llm.report.tables import general_table, matrix_table, metrics_table
from codyra_llm.results.provenance import provenance
from codyra_llm.results.schema import General, ModelScores, RunResults, new_results
from codyra_llm.text import align
from codyra_llm.workflows.asking import asking
from codyra_llm.workflows.finished_run import open_finished, rebuilt
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
    identity: str | None = None,
    through: Callable[[Ask], Ask] = lambda ask: ask,
) -> list[TaskScores]:
    """Scores tasks of a plan, by number; each rank answers its share of the rows.

    Answers are saved in the folder under `name` as they arrive, and are not asked for again.

    Args:
        session: the session of the command.
        model: the model.
        plan: the plan of the run.
        which: numbers of the tasks, from 0.
        config: how to score.
        name: name of the answers, see `asking`.
        trained: False for the model before its first task, whose likelihoods are checked.
        identity: fingerprint of a model that other runs score as well, see `asking`.
        through: wraps the function that asks the model.

    Raises:
        UserError: `trained` is False, and a true answer has no finite likelihood.
        Stopped: the command was asked to stop.
    """
    rows = [plan.test_examples[i] for i in which]
    total = sum(map(len, rows))
    how = (config, name, f"scoring {name}", total, identity, plan.domain.answer)
    with asking(session, model, plan.source.tokenizer, *how) as ask:
        scored = plan.domain.scored([plan.stream.tasks[i] for i in which], rows, config, through(ask))
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
    """Scores config.model on every task of the configuration and, if suites are configured, on general ability.

    Writes to config.output_dir: config.yaml, results.json and predictions/model.<task>.jsonl.

    Returns:
        The content of results.json.

    Raises:
        UserError: the configuration, data or model is invalid, or output_dir contains other files.
        Stopped: it was asked to stop, like a run; started again, it resumes.
    """
    config = find_domain(config).settled(config)
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, ranks, to_train=False)
    check_ranks_agree(config, ranks, plan.source, plan)
    with open_session(ranks, lambda: scores_folder(config), "scores.log") as session:
        session.notes += plan.notes
        name = f"model-{_digest(config, plan)}"
        model = session.load(plan.source, config, plan.deepspeed_json, plan.end_ids, plan.domain)
        session.open(describe(config), resumed=config.resume == "auto")
        tasks = range(len(plan.stream))
        scored = score_tasks(session, model, plan, tasks, config.evaluate, name, trained=False)
        identity = base_identity(session, config, plan.source, model) if plan.suites else None
        found = score_general(
            session,
            plan.source,
            model,
            plan.suites,
            plan.general_template,
            config.evaluate,
            "model",
            identity,
            plan.domain,
        )
        by_task, variants = dict(zip(plan.stream.names, scored, strict=True)), plan.domain.facts.variants
        scores = {variant: {task: each.totals[variant] for task, each in by_task.items()} for variant in variants}
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


def score_run(run: Path, config: RunConfig, after: Sequence[str] = ()) -> RunResults:
    """Scores the tasks of a configuration on the models of a finished run: its base and the model after each task.

    Writes the scores to config.output_dir as a run does: config.yaml, results.json, the matrix, predictions.

    Args:
        run: the run's folder, which is not changed.
        config: the run's configuration, with other limits, rows, or scoring variant.
        after: tasks after which the model is scored, in addition to the base model; empty: each.

    Returns:
        The content of results.json; losses and ranks are those of the run.

    Raises:
        UserError: the run is not finished, or its folder or the configuration is invalid.
        Stopped: it was asked to stop; started again, it resumes.
    """
    config = dataclasses.replace(config, general=GeneralConfig())
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, ranks, to_train=False)
    check_ranks_agree(config, ranks, plan.source, plan)
    with open_session(ranks, lambda: scores_folder(config), "scores.log") as session:
        finished = open_finished(session, run, after)
        if plan.stream.names != finished.results.tasks:
            raise UserError(f"order: the run learned {', '.join(finished.results.tasks)}; leave order as it was")
        session.notes += plan.notes
        model = session.load(plan.source, config, plan.deepspeed_json, plan.end_ids, plan.domain)
        session.open(describe(config), resumed=config.resume == "auto")
        how = provenance(config, plan.deepspeed_json, model, ranks.size)
        results = new_results(how, plan.data(config), General(), plan.domain.facts.variants)
        results.losses, results.ranks = finished.results.losses, finished.results.ranks
        digest = _digest(config, plan)
        tasks = range(len(plan.stream))
        for stage in rebuilt(finished, session, config, plan.source, model):
            if stage.number and after and stage.task not in after:
                continue
            name = f"{stage.name}-{digest}"
            scored = score_tasks(session, model, plan, tasks, config.evaluate, name, trained=stage.number > 0)
            record_scores(results, stage, tasks, scored, config.evaluate)
            session.on_rank_0(partial(_write_stage, session.folder, results, stage, scored))

        def write() -> None:
            write_report(results, session.folder.path)
            write_scores(session.folder, results, [matrix_table(results), metrics_table(results)])

        session.on_rank_0(write)
    return results


def record_scores(
    results: RunResults, stage: Stage, tasks: Sequence[int], scored: Sequence[TaskScores], config: EvaluateConfig
) -> None:
    """Records the scores of tasks, by number, at a stage."""
    for task, scores in zip(tasks, scored, strict=True):
        for variant in results.matrices:
            results.matrices[variant][stage.number][task] = scores.totals[variant]
        results.matrix[stage.number][task] = scores.totals[config.scorer_variant]
        for name, totals in scores.further.items():
            of_task = results.further.setdefault(results.tasks[task], {})
            of_stages = of_task.setdefault(name, [None] * len(results.matrix))
            of_stages[stage.number] = totals[config.scorer_variant]
        results.answer_nll[stage.number][task] = scores.nll if math.isfinite(scores.nll) else None
    results.metrics = {variant: matrix_metrics(matrix) for variant, matrix in results.matrices.items()}


def _write_stage(folder: RunFolder, results: RunResults, stage: Stage, scored: Sequence[TaskScores]) -> None:
    for task, scores in zip(results.tasks, scored, strict=True):
        folder.write_predictions(stage.name, task, scores.rows)
    folder.write_matrix(results.tasks, results.matrix)
    folder.write_results(results)


def _digest(config: RunConfig, plan: RunPlan) -> str:
    """Returns a hash that changes with the settings, the data, and the model's weights."""
    named = f"{plan.name(config)} {plan.source.sha256}"
    return hashlib.sha256(named.encode()).hexdigest()[:8]


def _table(results: ModelScores) -> str:
    rows = [["task", *results.scores, "NLL"]]
    for task in results.tasks:
        of_task = [f"{of_variant[task]:.1f}" for of_variant in results.scores.values()]
        nll = results.answer_nll[task]
        rows.append([task, *of_task, "" if nll is None else f"{nll:.3f}"])
    return align([*rows, ["mean", *(f"{results.mean[variant]:.1f}" for variant in results.mean), ""]])
