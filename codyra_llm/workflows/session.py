"""Generates answers across ranks; answers are saved as they arrive, so an interrupted evaluation resumes."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig
from codyra_llm.distributed.ranks import World, broadcast, on_rank_0
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.engine.zero import readable
from codyra_llm.errors import RankFailed, Stopped, UserError
from codyra_llm.generation.answer_cache import recall, remember
from codyra_llm.generation.generate import Answered, Ask, Question, answer_questions
from codyra_llm.report.folder import OutputFolder

LOG = logging.getLogger("codyra_llm")


@contextmanager
def stoppable(world: World, folder: OutputFolder | None) -> Iterator[StopRequest]:
    """A context in which the run can be asked to stop; when it has stopped, the folder (rank 0's) and the log say so.

    However it ends, the lock on the folder is released.
    """
    with StopRequest(world, folder.trigger if folder else None) as stop:
        try:
            yield stop
        except Stopped as stopped:
            where = str(stopped)
            on_rank_0(world, lambda: folder.write_stopped(where))  # type: ignore[union-attr]
            LOG.info(f"\nstopped {where}, as asked; the same command goes on from there")
            raise
        finally:
            if folder:
                folder.unlock()


@contextmanager
def asking(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    world: World,
    folder: OutputFolder | None,
    stop: StopRequest,
    row_name: str,
    doing: str,
    total: int | None = None,
    whom: str | None = None,
) -> Iterator[Ask]:
    """A context in which the model can be asked questions; they are dealt to the ranks, and each rank gets all answers.

    Answers are kept in the folder (rank 0's) under `row_name` as they are given, and the same question is not asked
    again: the name is to change with the model.

    Args:
        doing: for the progress bar and for Stopped. total: how many questions will come, where that is known.
        whom: fingerprint of everything the answers depend on (rank 0's); enables the cross-run cache of answers.
            None: a model of this run alone.

    Raises:
        Stopped: the run was asked to stop.
        RankFailed: the model failed on this rank, of several.
    """
    kept: Any = folder
    answered: dict[str, Answered] = broadcast(on_rank_0(world, lambda: kept.read_answers(row_name)))
    of_total = "" if total is None else f" of {total}"
    bar = tqdm(total=total, initial=len(answered), desc=doing, unit="row", leave=False, disable=not world.is_main)
    model.eval()
    with bar as progress, readable(model, config.gather, world) as synced:

        def ask(questions: Sequence[Question]) -> list[Answered]:
            known = broadcast(on_rank_0(world, lambda: recall(whom, questions))) if whom else None
            if known is not None:
                LOG.info(f"{doing}: {len(known)} answers of this model are known from before")
                return known
            keys = [question.key for question in questions]
            of_these = {i: answered[key] for i, key in enumerate(keys) if key in answered}

            def on_round(fresh: dict[int, Answered]) -> None:
                on_rank_0(world, lambda: kept.append_answers(row_name, {keys[i]: each for i, each in fresh.items()}))
                progress.update(len(fresh))
                if stop.agreed():
                    raise Stopped(f"while {doing}, after {progress.n}{of_total} answers")

            how = (config.batch_size, world, of_these, on_round, synced)
            try:
                given = answer_questions(model, tokenizer, questions, *how)
            except (Stopped, UserError):
                raise
            except Exception as error:
                if world.size == 1:
                    raise
                raise RankFailed(f"{doing}: rank {world.rank}: {type(error).__name__}: {error}") from error
            if whom:
                on_rank_0(world, lambda: remember(whom, questions, given))
            return given

        yield ask
