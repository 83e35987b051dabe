"""The phases of a run, one function each: train, merge and evaluate a stage; save the model at the end."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from codyra_llm.adapter.injection import describe_targets, kind_of
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import ModuleRank
from codyra_llm.data.encode import padding_id
from codyra_llm.distributed.ranks import broadcast
from codyra_llm.engine.passes import measure_before, passes_before
from codyra_llm.engine.state import TaskState, taken
from codyra_llm.engine.train import GATHERED, StepReport, train_task
from codyra_llm.engine.validate import BEST, Validation
from codyra_llm.engine.zero import check_updates, gathered_for_inference, trainable_count
from codyra_llm.errors import Stopped
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.generation.generate import Answered, Ask, Question
from codyra_llm.ledger.apply import weights_to_save
from codyra_llm.ledger.entry import drift, write_entry
from codyra_llm.ledger.kept import write_kept
from codyra_llm.ledger.ledger import Entry
from codyra_llm.methods.hooks import overrides
from codyra_llm.models.hub import stated_card
from codyra_llm.models.save import save_model
from codyra_llm.report.model_card import model_card
from codyra_llm.report.page.run import write_report
from codyra_llm.results.schema import TaskLosses, TaskRanks, ValidationLoss
from codyra_llm.workflows.divergence import measure_divergence
from codyra_llm.workflows.evaluate import record_scores, score_tasks
from codyra_llm.workflows.general_ability import base_identity, score_general
from codyra_llm.workflows.retention import prepare_retention, protect
from codyra_llm.workflows.run_state import RunState

LOG = logging.getLogger(__name__)


def train(run: RunState, stage: Stage) -> None:
    """Trains branches on the stage's task, prunes them, and writes the update to the ledger."""
    batches = run.plan.batches[stage.number - 1]
    phase = run.begin(stage, "train")
    how = (run.method.adapter, batches, run.config.seed, run.config.evaluate.gather, run.session.ranks)
    learning = run.plan.domain.learning
    over = partial(passes_before, module=learning.module, passes=learning.passes)
    before = partial(over, run.model, run.plan.source.tokenizer, *how)
    measure_before(run.method, batches.own, before)
    retention, protected = prepare_retention(run.config.retention, batches, before, run.resumed)
    prepared = run.method.prepare(run.model, stage.task, batches.total_steps)
    protect(run.model, protected, run.config.retention.protected_softly)
    run.results.trainable_parameters = trainable_count(run.model)
    run.results.relative_cost = run.method.relative_cost + (retention.added_cost if retention else 0)
    resumed, run.resumed = run.resumed, None
    if not resumed:
        run.results.losses.append(TaskLosses(stage.task))
    losses = run.results.losses[-1]
    validation = _validation(run, stage, resumed)
    run.method.gathered = taken(resumed, GATHERED)
    tasks = len(run.plan.stream)
    LOG.info(f"\ntask {stage.number} of {tasks}: {stage.task}, {describe_targets(prepared.wrapped)}")
    progress = run.report.progress(stage.task, batches.total_steps, resumed.step if resumed else 0)

    def on_step(report: StepReport, read: Callable[[], dict[str, torch.Tensor]]) -> None:
        run.global_step += 1
        run.report.estimate(report, lambda: run.plan.tokens, stage.number - 1, batches.total_steps)
        run.report.step(report, run.global_step, progress)
        for name in ("loss", "learning_rate", "threshold", "live_rank"):
            getattr(losses, name).append(getattr(report, name))
        if report.validation is not None:
            losses.validation.append(ValidationLoss(report.step + 1, report.validation))
        phase.tokens += report.tokens
        done, stop = report.step + 1, run.session.stop.agreed()
        if stop or (done % run.config.train.checkpoint_every == 0 and done < batches.total_steps):
            run.checkpoint((stage, "train"), done, read())
        if stop:
            raise Stopped(f"in task {stage.number} ({stage.task}), after step {done} of {batches.total_steps}")

    train_task(
        run.model,
        prepared.optimizer,
        prepared.schedule,
        batches,
        run.config.train,
        run.plan.deepspeed_json,
        run.session.ranks,
        on_step,
        resumed,
        run.method,
        validation,
        retention,
        learning,
    )
    progress.close()
    if validation:
        losses.kept_step = validation.best_step if run.config.train.keep_best else validation.losses[-1][0]
    _finish(run, stage)


def _validation(run: RunState, stage: Stage, resumed: TaskState | None) -> Validation | None:
    """Returns the validation of a stage's task, with the results of an interrupted one up to its checkpoint."""
    rows = run.plan.validation[stage.number - 1]
    if not rows:
        return None
    known = [(found.step, found.loss) for found in run.results.losses[-1].validation]
    return Validation(rows, run.config.train, known, taken(resumed, BEST))


def _finish(run: RunState, stage: Stage) -> None:
    """Removes the branches from the model, adds the update to the ledger, and the ranks to the results."""
    run.begin(stage, "prune and merge")
    run.report.gates(gated_layers(run.model), stage.number)
    kept, updates = run.method.finish(run.model)
    check_updates(run.model, updates, stage.task)
    session, folder = run.session, run.session.folder
    name, base = run.ledger.name_of_next(stage.task), run.config.model.name_or_path
    task_type = run.plan.domain.facts.adapter_task
    merged = [module.rank for module in kept if module.name in updates]
    written = session.on_rank_0(lambda: write_entry(folder.ledger / name, updates, base, task_type=task_type))
    files, settings = broadcast((written, run.checkpoints and run.checkpoints.run))
    run.ledger = run.ledger.with_entry(
        Entry(
            name,
            stage.task,
            files,
            projections=sum(rank > 0 for rank in merged),
            components=sum(merged),
            norm=_norm(kept),
            settings=settings,
        )
    )
    if run.method.kept:
        run.kept = broadcast(session.on_rank_0(lambda: write_kept(folder.kept, name, run.method.kept)))
    _record_ranks(run, stage, kept)


def _record_ranks(run: RunState, stage: Stage, kept: list[ModuleRank]) -> None:
    norms: dict[str, float] = broadcast(run.session.on_rank_0(lambda: drift(run.entry_folders, run.combine)))
    by_kind: dict[str, list[int]] = {}
    for module in kept:
        by_kind.setdefault(kind_of(module.name), []).append(module.rank)
    of_task = TaskRanks(
        stage.task,
        mean=sum(module.rank for module in kept) / len(kept),
        initial=max(module.initial_rank for module in kept),
        by_projection={kind: sum(ranks) / len(ranks) for kind, ranks in by_kind.items()},
        update_norm=_norm(kept),
        cumulative_norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        bound=sum(module.bound for module in kept),
    )
    run.results.ranks.append(of_task)
    run.report.ranks(of_task, run.results.losses[-1].loss[-1], stage.number)
    run.session.on_rank_0(lambda: run.session.folder.append_ranks(stage.task, kept, norms))


def _norm(kept: list[ModuleRank]) -> float:
    return sum(module.norm**2 for module in kept) ** 0.5


def merge(run: RunState, stage: Stage) -> None:
    """Merges the ledger's last entry, which the stage's task has added, into the model's weights."""
    run.begin(stage, "prune and merge")

    def check_stop() -> None:
        if run.session.stop.agreed():
            raise Stopped(f"while merging task {stage.number} ({stage.task})")

    run.merge(len(run.ledger.entries), last_only=True, before=check_stop)


def evaluate(run: RunState, stage: Stage) -> None:
    """Scores the model on the tasks and on general ability, which gives a row of the matrix."""
    config, results, session = run.config, run.results, run.session
    tasks = range(stage.number if config.evaluate.tasks == "seen" else len(results.tasks))
    phase = run.begin(stage, "evaluate")
    scored = _score(run, stage, tasks)
    phase.tokens = sum(scores.tokens for scores in scored)
    record_scores(results, stage, tasks, scored, config.evaluate)
    if scored and not stage.number:
        _remark(run, tasks, scored)
    if run.plan.measures_general(stage, config):
        _evaluate_general(run, stage)
    run.report.scores(results, stage)
    if stage.number and config.evaluate.divergence and not overrides(run.method, "serving"):
        results.divergence.append(measure_divergence(run, stage))
    if stage.number:
        row = zip(results.tasks, results.matrix[stage.number], strict=True)
        run.ledger = run.ledger.with_scores({task: score for task, score in row if score is not None})

    def write() -> None:
        for task, scores in zip(tasks, scored, strict=True):
            session.folder.write_predictions(stage.name, results.tasks[task], scores.rows)

    session.on_rank_0(write)


def _remark(run: RunState, tasks: Sequence[int], scored: Sequence[TaskScores]) -> None:
    of_tasks = [run.plan.stream.tasks[task] for task in tasks]
    said, warned = run.plan.domain.remarks(of_tasks, scored, run.config.evaluate.scorer_variant)
    for line in said:
        LOG.info(line)
    for line in warned:
        LOG.warning(line)


def _score(run: RunState, stage: Stage, tasks: Sequence[int]) -> list[TaskScores]:
    """Scores tasks, each with the parts of the method that are active for it."""
    session, config, trained = run.session, run.config.evaluate, stage.number > 0
    if not trained or not overrides(run.method, "serving"):
        identity = _identity_of_base(run, stage) if run.shares_base else None
        return score_tasks(session, run.model, run.plan, tasks, config, stage.name, trained, identity)
    scored = []
    for task in tasks:
        name, through = run.results.tasks[task], _routing(run, stage, task)
        how = (config, f"{stage.name}.{name}", trained)
        if through:
            scored += score_tasks(session, run.model, run.plan, [task], *how, through=through)
            continue
        with run.method.serving(run.model, name):
            scored += score_tasks(session, run.model, run.plan, [task], *how)
    return scored


def _routing(run: RunState, stage: Stage, task: int) -> Callable[[Ask], Ask] | None:
    """Returns a wrapper that answers each test row with the method's parts for the task that the row is routed to.

    None if the method does not route. The percentage of rows routed to their own task is added to the results.
    """
    rows, ranks = run.plan.test_examples[task], run.session.ranks
    if not overrides(run.method, "routes"):
        return None
    with gathered_for_inference(run.model.eval(), run.config.evaluate.gather, ranks):
        learning = run.plan.domain.learning
        passes = learning.passes(learning.module(run.model), {}, padding_id(run.plan.source.tokenizer), ranks)
        routes = run.method.routes(rows, passes)
    if routes is None:
        return None
    name = run.results.tasks[task]
    accuracies = run.results.routing.setdefault(name, [None] * len(run.results.matrix))
    accuracies[stage.number] = 100 * routes.count(name) / len(routes)

    def through(ask: Ask) -> Ask:
        def ask_each(questions: Sequence[Question]) -> Sequence[Answered]:
            answers: dict[int, Answered] = {}
            for route in dict.fromkeys(routes):
                numbers = [number for number, of_row in enumerate(routes) if of_row == route]
                with run.method.serving(run.model, route):
                    answers |= zip(numbers, ask([questions[number] for number in numbers]), strict=True)
            return [answers[number] for number in range(len(questions))]

        return ask_each

    return through


def _evaluate_general(run: RunState, stage: Stage) -> None:
    """Measures general ability, and adds it to the results with its change against the base model, if known."""
    model, source, config, identity = run.model, run.plan.source, run.config, _identity_of_base(run, stage)
    with run.method.serving(model, None):
        how = (run.plan.suites, run.plan.general_template, config.evaluate, stage.name, identity)
        found = score_general(run.session, source, model, *how, run.plan.domain)
    run.report.general(stage, run.results.general.add(run.plan.stages, stage, found))


def _identity_of_base(run: RunState, stage: Stage) -> str | None:
    """Returns the identity of the run's first model, whose answers other runs share; None for later models."""
    if stage.number:
        return None
    return base_identity(run.session, run.config, run.plan.source, run.model, run.ledger)


def save(run: RunState, stage: Stage) -> None:
    """Saves the model in transformers' format, with its card, and the page with its pictures."""
    run.begin(stage, "save")
    session, folder = run.session, run.session.folder
    folders = run.entry_folders if folder else None
    model, layout, weights = weights_to_save(run.config, run.plan.source, run.model, run.original, folders, run.combine)

    def write() -> None:
        try:
            source = run.plan.source
            card = model_card(run.results, stated_card(source))
            if template := run.plan.general_template:  # it may come from a file of the user
                source.tokenizer.chat_template = template.source
            save_model(model, layout, weights, source.tokenizer, folder.model, card, base=source.path)
        finally:
            deque(weights, maxlen=0)  # gathering is collective: after errors too, other ranks iterate over all weights

    if not session.ranks.is_main:
        deque(weights, maxlen=0)
    session.on_rank_0(write)
    session.on_rank_0(lambda: write_report(run.results, folder.path))
