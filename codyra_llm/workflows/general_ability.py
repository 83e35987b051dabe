"""Measures general ability: in a run after its tasks, of an untrained model, or later, from a finished run's ledger."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from codyra_llm.config import EvaluateConfig, RunConfig, decisive, describe
from codyra_llm.data.chat import ChatTemplate, end_ids, find_chat_template
from codyra_llm.distributed.ranks import broadcast, start
from codyra_llm.domains.base import Domain, Suite
from codyra_llm.domains.find import find_domain
from codyra_llm.domains.text.domain import TEXT
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.generation.generate import end_tokens
from codyra_llm.ledger.ledger import Ledger
from codyra_llm.models.source import Source
from codyra_llm.planning.run_plan import check_ranks_agree
from codyra_llm.report.folder import RunFolder, scores_folder
from codyra_llm.report.page.run import write_report
from codyra_llm.report.tables import general_table
from codyra_llm.results.provenance import provenance
from codyra_llm.results.schema import General, GeneralScores, Provenance, RunResults
from codyra_llm.workflows.asking import asking
from codyra_llm.workflows.finished_run import open_finished, rebuilt, saved_config
from codyra_llm.workflows.session import Session, open_session

LOG = logging.getLogger(__name__)


def score_general(
    session: Session,
    source: Source,
    model: PreTrainedModel,
    suites: Sequence[Suite],
    template: ChatTemplate | None,
    config: EvaluateConfig,
    name: str,
    identity: str | None = None,
    domain: Domain = TEXT,
) -> dict[str, SuiteScore | SuiteFailure]:
    """Scores a model on suites of general ability, by name of the suite; every rank returns the same.

    Answers are saved in the folder under `name` as they arrive, and are not asked for again; in the end they are in
    predictions/<name>.general.<suite>.jsonl.

    Args:
        session: the session of the command.
        source: the source of the model.
        model: the model.
        suites: the suites.
        template: the chat template of the prompts, as in lm-eval with --apply_chat_template.
        config: how to score.
        name: name of the answers.
        identity: see `asking`.
        domain: the domain of the suites.

    Raises:
        Stopped: the command was asked to stop.
    """
    if not suites:
        return {}
    answers = f"general-{name}-{hashlib.sha256(str(identity).encode()).hexdigest()[:8]}"
    doing = f"measuring general ability (general-{name})"
    with asking(
        session, model, source.tokenizer, config, answers, doing, identity=identity, answer=domain.answer
    ) as ask:
        scores, rows = domain.score_suites(suites, source, template, ask)
    for suite, found in scores.items():
        if isinstance(found, SuiteFailure):
            LOG.warning(f"general ability: {suite} failed: {found.failed}")

    def write() -> None:
        for label, of_suite in rows.items():
            session.folder.write_predictions(name, f"general.{label}", of_suite)

    session.on_rank_0(write)
    return scores


def base_identity(
    session: Session,
    config: RunConfig,
    source: Source,
    model: PreTrainedModel,
    ledger: Ledger | None = None,
) -> str:
    """Returns the identity, for `asking`, of a run's first model: all that answers depend on, except the questions.

    Args:
        session: the session of the command.
        config: the configuration of the run.
        source: the base model.
        model: the model in the state in which it is asked: its configuration counts as well as its weights.
        ledger: the entries added to config.model before the run's first task.
    """

    def identify() -> str:
        settings = {name: value for name, value in decisive(config).items() if name.startswith("model.")}
        settings["model.name_or_path"] = source.sha256
        structure = json.loads(model.config.to_json_string(use_diff=False))  # includes the version of transformers
        structure.pop("_name_or_path", None)
        ends = sorted(end_tokens(model, source.tokenizer))
        added = [config.merge.mode, ledger.files] if ledger and ledger.files else []
        return json.dumps([settings, structure, ends, session.ranks.device.type, added], sort_keys=True)

    found: str = broadcast(session.on_rank_0(identify))
    return found


def general_of_model(suites: Sequence[Suite], found: dict[str, SuiteScore | SuiteFailure]) -> General:
    """Returns the general ability of a model that was not trained."""
    return General(items={suite.name: suite.items for suite in suites}, scores={"model": found} if found else {})


def write_scores(folder: RunFolder, results: Provenance, tables: Sequence[str]) -> None:
    """Writes the results of a model that was not trained by this command, and prints them."""
    folder.write_results(results)
    folder.drop_answers()
    print("\n\n".join([*tables, f"all results are in {folder.path}"]))


def score_suites(config: RunConfig) -> GeneralScores:
    """Scores config.model on config.general.suites alone; suites of text need no task data.

    Writes config.yaml, results.json and predictions/model.general.<suite>.jsonl to config.output_dir.

    Returns:
        The content of results.json.

    Raises:
        UserError: the configuration, a suite or the model is invalid, or output_dir contains other files.
        Stopped: it was asked to stop, like a run; started again, it resumes.
    """
    domain, config = _settled(config)
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    source = domain.open(config)
    suites = _suites(domain, config, source)
    check_ranks_agree(config, ranks, source)
    with open_session(ranks, lambda: scores_folder(config), "scores.log") as session:
        template = find_chat_template(source.tokenizer, config.data.chat_template)
        model = session.load(source, config, deepspeed_json, end_ids(source.tokenizer, template), domain)
        session.open(describe(config), resumed=config.resume == "auto")
        identity = base_identity(session, config, source, model)
        how = (template, config.evaluate, "model", identity, domain)
        found = score_general(session, source, model, suites, *how)
        results = GeneralScores(
            **provenance(config, deepspeed_json, model, ranks.size), general=general_of_model(suites, found)
        )
        session.on_rank_0(lambda: write_scores(session.folder, results, [general_table(results.general)]))
    _check_measured([found])
    return results


def _settled(config: RunConfig) -> tuple[Domain, RunConfig]:
    """Returns the domain and the configuration settled for it; suites of text need no task file."""
    try:
        domain = find_domain(config)
    except UserError:
        return TEXT, config
    return domain, domain.settled(config)


def _check_measured(of_stages: "Sequence[dict[str, SuiteScore | SuiteFailure]]") -> None:
    """Raises UserError if suites were measured, and all of them failed."""
    measured = [found for of_stage in of_stages for found in of_stage.values()]
    failed = [found for found in measured if isinstance(found, SuiteFailure)]
    if failed and len(failed) == len(measured):
        raise UserError(f"no suite could be measured: {failed[0].failed}")


def measure_later(run: Path, config: RunConfig, after: Sequence[str] = ()) -> RunResults:
    """Measures the general ability that a finished run's results lack; updates the run's results, plot and answers.

    The model after each task is the base model plus the ledger's entries up to it. A suite that failed, or was measured
    on other items, is measured again.

    Args:
        run: the run folder.
        config: the run's configuration, with the wanted suites and, where they differ, batch size, placement and so on.
        after: tasks after which it is measured, in addition to the base model; empty: each.

    Returns:
        The content of results.json.

    Raises:
        UserError: the run is not finished, or its folder, a suite or the configuration is invalid.
        Stopped: it was asked to stop; started again, it resumes.
    """
    domain = find_domain(config)
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    with open_session(ranks, lambda: RunFolder(saved_config(run)), "train.log") as session:
        folder = session.folder
        finished = open_finished(session, run, after)
        results = finished.results
        source = domain.open(config)
        suites = _suites(domain, config, source, results.tasks)
        check_ranks_agree(config, ranks, source)
        left_out = {stage for stage in results.stages if stage.number and after and stage.task not in after}
        _forget_other_items(results.general, suites, left_out, after)
        session.open_log()
        template = find_chat_template(source.tokenizer, config.data.chat_template)
        of_tasks = {task.chat_template.end_token_id for task in results.data.tasks if task.chat_template}
        ends = of_tasks | end_ids(source.tokenizer, template)
        model = session.load(source, config, read_deepspeed_json(config.deepspeed), ends, domain)
        identity = base_identity(session, config, source, model, finished.extended)
        measured: list[dict[str, SuiteScore | SuiteFailure]] = []
        for stage in rebuilt(finished, session, config, source, model):
            known = results.general.scores.get(stage.name, {})
            missing = [suite for suite in suites if not isinstance(known.get(suite.name), SuiteScore)]
            if not missing or stage in left_out:
                continue
            of_base = None if stage.number else identity
            found = score_general(
                session, source, model, missing, template, config.evaluate, stage.name, of_base, domain
            )
            delta = results.general.add(results.stages, stage, found)
            measured.append(found)
            change = "" if delta is None else f"; general ability {delta:+.2f}"
            LOG.info(f"{stage.title}: measured {', '.join(found)}{change}")
            session.on_rank_0(lambda: folder.write_results(results))

        def write() -> None:
            folder.drop_answers()
            write_report(results, folder.path)
            print(f"{general_table(results.general)}\n\nall results are in {folder.path}")

        session.on_rank_0(write)
    _check_measured(measured)
    return results


def _forget_other_items(general: General, suites: Sequence[Suite], left_out: set[Stage], after: Sequence[str]) -> None:
    """Removes the scores of suites that were measured on other items; raises UserError if some would be lost."""
    for suite in suites:
        if general.items.get(suite.name) == suite.items:
            continue
        if any(suite.name in general.scores.get(stage.name, {}) for stage in left_out):
            raise UserError(
                f"--after {','.join(after)}: {suite.name} was measured on other items after other tasks, and those "
                "scores would be lost; leave --after out, or general.limit as it was"
            )
        general.items[suite.name] = suite.items
        for found in general.scores.values():
            found.pop(suite.name, None)


def _suites(domain: Domain, config: RunConfig, source: Source, learned: Sequence[str] = ()) -> Sequence[Suite]:
    if not config.general.suites:
        raise UserError(
            "no suite is named; --suites takes general, mmlu, gsm8k, bbh, tydiqa, boolq, piqa or others, and of images "
            "tasks of the task file that are not learned"
        )
    return domain.suites(config, source, learned)
