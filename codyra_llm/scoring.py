"""Scoring a model on the tasks of a plan: after a task of a run, or as it is, without training."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig, RunConfig
from codyra_llm.engine.launch import World, on_main, share, start
from codyra_llm.engine.stop import StopRequest
from codyra_llm.engine.zero import load_base, readable
from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.evaluate import TaskScores, evaluate_tasks
from codyra_llm.evaluation.generate import Answered, Ask, Question, answer_questions
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.files import expand
from codyra_llm.plan import RunPlan, plan_run
from codyra_llm.report.folder import RunFolder, start_log
from codyra_llm.report.tables import general_table
from codyra_llm.results import new_results
from codyra_llm.text import align

if TYPE_CHECKING:
    from codyra_llm.evaluation.general.suites import Suite

LOG = logging.getLogger("codyra_llm")
OF_A_RUN = ("schema_version", "command", "versions", "config", "seed", "world_size", "model", "data", "tasks")


@contextmanager
def stoppable(world: World, folder: RunFolder | None) -> Iterator[StopRequest]:
    """Within, the run can be asked to stop; when it has stopped, the folder (rank 0's) and the log say so."""
    with StopRequest(world, folder.trigger if folder else None) as stop:
        try:
            yield stop
        except Stopped as stopped:
            where = str(stopped)
            on_main(world, lambda: folder.write_stopped(where))  # type: ignore[union-attr]
            LOG.info(f"\nstopped {where}, as asked; the same command goes on from there")
            raise


def score_tasks(
    model: PreTrainedModel,
    plan: RunPlan,
    which: Sequence[int],
    config: EvaluateConfig,
    world: World,
    folder: RunFolder | None,
    stop: StopRequest,
    row_name: str,
) -> list[TaskScores]:
    """Scores tasks of a plan, by number; each rank answers its share of the rows.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and not asked for again.

    Raises:
        Stopped: the run was asked to stop.
    """
    rows = [plan.test_examples[i] for i in which]
    with _asking(
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
        return evaluate_tasks([plan.stream.tasks[i] for i in which], rows, config, ask)


def score_general(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: "Sequence[Suite]",
    config: EvaluateConfig,
    world: World,
    folder: RunFolder | None,
    stop: StopRequest,
    row_name: str,
) -> dict[str, Any]:
    """Scores a model on suites of general ability: suite -> what `score_suite` gives; every rank returns the same.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and not asked for again.

    Raises:
        Stopped: the run was asked to stop.
    """
    if not suites:
        return {}
    from codyra_llm.evaluation.general.lm import BatchedLM  # the harness takes seconds to import
    from codyra_llm.evaluation.general.suites import score_suite

    scores = {}
    doing = f"measuring general ability ({row_name})"
    with _asking(model, tokenizer, config, world, folder, stop, row_name, doing) as ask:
        lm = BatchedLM(tokenizer, ask, model.config.get_text_config().max_position_embeddings)
        for suite in suites:
            scores[suite.name] = score_suite(suite, lm)
            if "failed" in scores[suite.name]:
                LOG.warning(f"general ability: {suite.name} failed: {scores[suite.name]['failed']}")
    return scores


@contextmanager
def _asking(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    world: World,
    folder: RunFolder | None,
    stop: StopRequest,
    row_name: str,
    doing: str,
    total: int | None = None,
) -> Iterator[Ask]:
    """Within, questions can be asked of the model; the ranks share them, each has all the answers.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and not asked for again: questions
    are numbered from call to call, so that they must come in the same order every time.

    Args:
        doing: for the progress bar and for Stopped. total: how many questions will come, where that is known.

    Raises:
        Stopped: the run was asked to stop.
    """
    kept: Any = folder
    answered: dict[int, Answered] = share(on_main(world, lambda: kept.read_answers(row_name)))
    asked, of_total = 0, "" if total is None else f" of {total}"
    bar = tqdm(total=total, initial=len(answered), desc=doing, unit="row", leave=False, disable=not world.is_main)
    model.eval()
    with bar as progress, readable(model, config.gather, world) as synced:

        def ask(questions: Sequence[Question]) -> list[Answered]:
            nonlocal asked
            first, asked = asked, asked + len(questions)
            of_these = {i - first: answer for i, answer in answered.items() if first <= i < asked}

            def on_round(fresh: dict[int, Answered]) -> None:
                on_main(world, lambda: kept.append_answers(row_name, {first + i: each for i, each in fresh.items()}))
                progress.update(len(fresh))
                if stop.agreed():
                    raise Stopped(f"while {doing}, after {progress.n}{of_total} answers")

            return answer_questions(model, tokenizer, questions, config.batch_size, world, of_these, on_round, synced)

        yield ask


def score_model(config: RunConfig) -> dict[str, Any]:
    """Scores config.model on every task of the configuration.

    Leaves in config.output_dir: config.yaml, results.json and predictions/model.<task>.jsonl.

    Returns:
        What stands in results.json: what a run says of itself, `scores` (variant -> task -> 0 to 100), `mean`
        (variant -> mean over tasks), `answer_nll` (task -> nats per token of the true answers) and, where suites of
        general ability are configured, `general` (suite -> score).

    Raises:
        UserError: the configuration, data or model is unfit, or output_dir holds something else.
        Stopped: it was asked to stop, as a run is; started again, it goes on.
    """
    world = start(config.rendezvous_seconds)
    plan = plan_run(config, world, to_train=False)
    folder: Any = on_main(world, lambda: _folder(config))
    on_main(world, lambda: folder.forget_stops())
    notes: list[str] = []
    which, row_name = range(len(plan.stream)), f"model-{_journal_name(config, plan)}"
    with stoppable(world, folder) as stop:
        model = load_base(config, plan.deepspeed_json, world, notes.append)
        on_main(world, lambda: folder.open(resumed=config.resume == "auto"))
        log = start_log(folder.path / "scores.log" if folder else None)
        for note in notes:
            log.warning(note)
        scored = score_tasks(model, plan, which, config.evaluate, world, folder, stop, row_name)
        general = score_general(
            model, plan.tokenizer, plan.suites, config.evaluate, world, folder, stop, f"general-{row_name}"
        )
    by_task = dict(zip(plan.stream.names, scored, strict=True))
    scores = {variant: {task: each.totals[variant] for task, each in by_task.items()} for variant in VARIANTS}
    results = {key: value for key, value in new_results(config, plan, model, world.size).items() if key in OF_A_RUN}
    results |= {
        "scores": scores,
        "mean": {variant: sum(of_tasks.values()) / len(of_tasks) for variant, of_tasks in scores.items()},
        "answer_nll": {task: each.nll for task, each in by_task.items()},
    }
    if plan.suites:
        results["general"] = general

    def write() -> None:
        for task, each in by_task.items():
            folder.write_predictions("model", task, each.rows)
        folder.write_results(results)
        folder.drop_answers()
        print(_table(results))
        if general:
            print(f"\n{general_table({'model': general})}")
        print(f"\nall results are in {folder.path}")

    on_main(world, write)
    return results


def _journal_name(config: RunConfig, plan: RunPlan) -> str:
    """Changes with the settings, the data, and the files of a model that lies here."""
    files = sorted(expand(config.model.name_or_path).glob("*"))
    model = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(f"{plan.name(config)} {model}".encode()).hexdigest()[:8]


def _folder(config: RunConfig) -> RunFolder:
    folder = RunFolder(config)
    if (folder.path / "checkpoints").exists():
        raise UserError(f"output_dir {folder.path}: holds a training run; name another folder for the scores")
    return folder


def _table(results: dict[str, Any]) -> str:
    rows = [["task", *VARIANTS, "NLL"]]
    for task in results["tasks"]:
        of_task = [f"{results['scores'][variant][task]:.1f}" for variant in VARIANTS]
        rows.append([task, *of_task, f"{results['answer_nll'][task]:.3f}"])
    return align([*rows, ["mean", *(f"{results['mean'][variant]:.1f}" for variant in VARIANTS), ""]])
