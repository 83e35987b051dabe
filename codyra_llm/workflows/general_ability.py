"""Measuring general ability: in a run after its tasks, of a model as it is, or later, of a finished run's ledger."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig, RunConfig, decisive, describe, load_config
from codyra_llm.distributed.ranks import World, broadcast, on_rank_0, start
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.zero import load_base
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.delta import general_delta
from codyra_llm.files import read_json
from codyra_llm.generation.generate import end_tokens
from codyra_llm.ledger.apply import find_original, merge_entries
from codyra_llm.ledger.ledger import Ledger, read_ledger
from codyra_llm.models.fingerprint import model_hash
from codyra_llm.models.load import load_config_and_tokenizer
from codyra_llm.planning.run_plan import check_ranks_agree
from codyra_llm.report.folder import RunFolder, scores_folder, start_log
from codyra_llm.report.plots import plot_general
from codyra_llm.report.tables import general_table
from codyra_llm.results import of_a_model
from codyra_llm.workflows.session import asking, stoppable

if TYPE_CHECKING:
    from codyra_llm.evaluation.general.suites import Suite

LOG = logging.getLogger("codyra_llm")


def score_general(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: "Sequence[Suite]",
    config: EvaluateConfig,
    world: World,
    folder: RunFolder | None,
    stop: StopRequest,
    row_name: str,
    whom: str | None = None,
) -> dict[str, Any]:
    """Scores a model on suites of general ability: suite -> what `score_suite` gives; every rank returns the same.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and not asked for again; in the end
    they are in predictions/<row>.general.<suite>.jsonl.

    Args:
        whom: as for `asking`.

    Raises:
        Stopped: the run was asked to stop.
    """
    if not suites:
        return {}
    from codyra_llm.evaluation.general.lm import BatchedLM  # the harness takes seconds to import
    from codyra_llm.evaluation.general.score import score_suite

    kept: Any = folder
    journal = f"general-{row_name}-{hashlib.sha256(str(whom).encode()).hexdigest()[:8]}"
    doing = f"measuring general ability (general-{row_name})"
    scores, rows = {}, {}
    with asking(model, tokenizer, config, world, folder, stop, journal, doing, whom=whom) as ask:
        lm = BatchedLM(tokenizer, ask, model.config.get_text_config().max_position_embeddings)
        for suite in suites:
            scores[suite.name], rows[suite.label] = score_suite(suite, lm)
            if "failed" in scores[suite.name]:
                LOG.warning(f"general ability: {suite.name} failed: {scores[suite.name]['failed']}")

    def write() -> None:
        for label, of_suite in rows.items():
            kept.write_predictions(row_name, f"general.{label}", of_suite)

    on_rank_0(world, write)
    return scores


def base_identity(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    ledger: Ledger | None = None,
) -> str:
    """Whom a run begins with, for `asking`: all that answers depend on but the questions.

    Args:
        model: as it is to be asked: its configuration decides as its weights do.
        ledger: what is added to config.model before its first task.
    """

    def identify() -> str:
        held = {name: value for name, value in decisive(config).items() if name.startswith("model.")}
        held["model.name_or_path"] = model_hash(config.model.name_or_path)
        structure = json.loads(model.config.to_json_string(use_diff=False))  # says as well which transformers it is
        structure.pop("_name_or_path", None)
        ends = sorted(end_tokens(model, tokenizer))
        added = [config.merge.mode, ledger.files] if ledger and ledger.files else []
        return json.dumps([held, structure, ends, world.device.type, added], sort_keys=True)

    found: str = broadcast(on_rank_0(world, identify))
    return found


def set_row(general: dict[str, Any], row_name: str, scores: dict[str, Any]) -> float | None:
    """Enters what was measured into results["general"], and its change against the base model, which is returned."""
    rows = general["scores"]
    rows[row_name] = rows.get(row_name, {}) | scores
    general["scores"] = dict(sorted(rows.items(), key=lambda row: int(row[0].split("-")[0])))
    general["delta"] = {name: general_delta(found, rows.get("0-base", {})) for name, found in general["scores"].items()}
    return general["delta"][row_name]


def score_suites(config: RunConfig) -> dict[str, Any]:
    """Scores config.model on config.general.suites alone, for which no task data is needed.

    Leaves config.yaml, results.json and predictions/model.general.<suite>.jsonl in config.output_dir.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the configuration, a suite or the model is unfit, or output_dir holds something else.
        Stopped: it was asked to stop, as a run is; started again, it goes on.
    """
    world = start(config.rendezvous_seconds, config.collective_seconds)
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    _, tokenizer = load_config_and_tokenizer(config.model.name_or_path)
    suites = _load_suites(config)
    check_ranks_agree(config, world)
    folder: Any = on_rank_0(world, lambda: scores_folder(config))
    on_rank_0(world, lambda: folder.forget_stops())
    with stoppable(world, folder) as stop:
        notes: list[str] = []
        model = load_base(config, deepspeed_json, world, notes.append)
        on_rank_0(world, lambda: folder.open(resumed=config.resume == "auto"))
        log = start_log(folder.path / "scores.log" if folder else None)
        log.info(f"settings: {describe(config)}; all others by default")
        for note in notes:
            log.warning(note)
        whom = base_identity(config, model, tokenizer, world)
        found = score_general(model, tokenizer, suites, config.evaluate, world, folder, stop, "model", whom)
    results = of_a_model(config, deepspeed_json, model, world.size)
    results["general"] = {"items": {suite.name: suite.items for suite in suites}, "scores": {"model": found}}

    def write() -> None:
        folder.write_results(results)
        folder.drop_answers()
        print(general_table({"model": found}))
        print(f"\nall results are in {folder.path}")

    on_rank_0(world, write)
    _check_measured([found])
    return results


def _check_measured(rows: Sequence[dict[str, Any]]) -> None:
    """Raises UserError where suites were measured, and all of them failed."""
    measured = [scores for row in rows for scores in row.values()]
    if measured and all("failed" in scores for scores in measured):
        raise UserError(f"no suite could be measured: {measured[0]['failed']}")


def measure_later(run: Path, config: RunConfig, after: Sequence[str] = ()) -> dict[str, Any]:
    """Measures what a finished run's results lack of its general ability; the run's results, plot and answers get it.

    The model after each task is the base model and the ledger's entries up to it. A suite that failed, or was measured
    on other items, is measured again.

    Args:
        run: its folder. config: the run's, with the suites that are wanted and, where they differ, the means.
        after: tasks after which it is measured, beside the base model; none: each.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the run is not finished, or its folder, a suite or the configuration is unfit.
        Stopped: it was asked to stop; started again, it goes on.
    """
    world = start(config.rendezvous_seconds, config.collective_seconds)
    folder: Any = on_rank_0(world, lambda: RunFolder(saved_config(run)))
    results = broadcast(on_rank_0(world, lambda: _finished(folder)))
    ledger: Ledger = broadcast(on_rank_0(world, lambda: read_ledger(folder.ledger)))
    rows = [(0, "base"), *enumerate(results["tasks"], 1)]
    begun = _begun_with(ledger, results["tasks"])
    if unknown := sorted(set(after) - set(results["tasks"])):
        raise UserError(f"--after {', '.join(unknown)}: not a task of this run; it has {', '.join(results['tasks'])}")
    _, tokenizer = load_config_and_tokenizer(config.model.name_or_path)
    suites = _load_suites(config)
    check_ranks_agree(config, world)
    general = results["general"]
    passed_over = [f"{number}-{task}" for number, task in rows if number and after and task not in after]
    for suite in suites:
        if general["items"].get(suite.name) != suite.items:
            if any(suite.name in general["scores"].get(name, {}) for name in passed_over):
                raise UserError(
                    f"--after {','.join(after)}: {suite.name} was measured on other items after other tasks, and those "
                    "scores would be lost; leave --after out, or general.limit as it was"
                )
            general["items"][suite.name] = suite.items
            for found in general["scores"].values():
                found.pop(suite.name, None)
    on_rank_0(world, lambda: folder.forget_stops())
    with stoppable(world, folder) as stop:
        start_log(folder.path / "train.log" if folder else None)
        model = load_base(config, read_deepspeed_json(config.deepspeed), world, LOG.warning)
        original = find_original(config)
        first = dataclasses.replace(ledger, entries=ledger.entries[:begun])
        whom = base_identity(config, model, tokenizer, world, first)
        measured: list[dict[str, Any]] = []
        for number, task in rows:
            name = f"{number}-{task}"
            entries = [entry.name for entry in ledger.entries[: begun + number]]
            merge_entries(model, original, folder.ledger if folder else None, entries, world, last_only=number > 0)
            known = general["scores"].get(name, {})
            missing = [suite for suite in suites if "score" not in known.get(suite.name, {})]
            if not missing or name in passed_over:
                continue
            found = score_general(
                model, tokenizer, missing, config.evaluate, world, folder, stop, name, None if number else whom
            )
            delta = set_row(general, name, found)
            measured.append(found)
            change = "" if delta is None else f"; general ability {delta:+.2f}"
            LOG.info(f"{name}: measured {', '.join(found)}{change}")
            on_rank_0(world, lambda: folder.write_results(results))

    def write() -> None:
        folder.drop_answers()
        plot_general(results, folder.path / "general.png")
        print(general_table(general["scores"], general["delta"]))
        print(f"\nall results are in {folder.path}")

    on_rank_0(world, write)
    _check_measured(measured)
    return results


def saved_config(run: Path) -> RunConfig:
    """The configuration of the run in a folder, wherever that lies by now.

    Raises:
        UserError: the folder holds no run.
    """
    return dataclasses.replace(load_config(run / "config.yaml"), output_dir=str(run))


def _finished(folder: RunFolder) -> dict[str, Any]:
    results: dict[str, Any] = read_json(folder.path / "results.json", "name the folder of a finished run")
    phases = results.get("phases") if isinstance(results, dict) else None
    if not phases or phases[-1]["phase"] != "save":
        raise UserError(f"{folder.path}: the run is not finished; start it again, and it goes on")
    return results


def _begun_with(ledger: Ledger, tasks: Sequence[str]) -> int:
    """How many entries a run's ledger had before the run's own; adapters may have been appended since."""
    learned = [number for number, entry in enumerate(ledger.entries, 1) if entry.settings]
    begun = max(learned, default=0) - len(tasks)
    own = [entry.task for entry in ledger.entries[max(begun, 0) : begun + len(tasks)]]
    if own != list(tasks):
        raise UserError(
            f"the ledger has {', '.join(own) or 'nothing'} where the run learned {', '.join(tasks)}; "
            "restore the folder `ledger` of this run"
        )
    return begun


def _load_suites(config: RunConfig) -> "list[Suite]":
    from codyra_llm.evaluation.general.suites import load_suites  # the harness takes seconds to import

    if not config.general.suites:
        raise UserError("no suite is named; --suites takes general, mmlu, gsm8k, bbh, tydiqa, boolq, piqa or others")
    return load_suites(config.general)
