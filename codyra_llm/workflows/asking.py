"""Asks a model questions across ranks; answers are saved as they arrive, so an interrupted evaluation resumes."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig
from codyra_llm.distributed.ranks import broadcast
from codyra_llm.domains.base import Answer
from codyra_llm.engine.zero import gathered_for_inference
from codyra_llm.errors import RankFailed, Stopped, UserError
from codyra_llm.generation.answer_cache import recall, remember
from codyra_llm.generation.generate import Answered, Ask, Question, answer_questions
from codyra_llm.report.progress import progress_bar
from codyra_llm.workflows.session import Session

LOG = logging.getLogger(__name__)


@contextmanager
def asking(
    session: Session,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    name: str,
    doing: str,
    total: int | None = None,
    identity: str | None = None,
    answer: Answer | None = None,
) -> Iterator[Ask]:
    """A context in which the model can be asked questions; the ranks share them, and each rank gets all answers.

    Answers are saved in the folder under `name` as they arrive, and the same question is not asked again, so the name
    must change with the model.

    Args:
        session: the session of the command.
        model: the model.
        tokenizer: its tokenizer.
        config: batch size and gathering of weights.
        name: name of the file of answers.
        doing: description for the progress bar and for Stopped.
        total: number of questions to come, if known.
        identity: fingerprint of everything the answers depend on (rank 0's); enables the cross-run cache of answers.
            None: a model of this run alone.
        answer: how the model answers; by default `answer_questions`.

    Raises:
        Stopped: the command was asked to stop.
        RankFailed: the model failed on this rank, of several.
    """
    ranks, folder = session.ranks, session.folder
    answered: dict[str, Answered] = broadcast(session.on_rank_0(lambda: folder.read_answers(name)))
    of_total = "" if total is None else f" of {total}"
    bar = progress_bar(doing, "row", total, len(answered), shown=ranks.is_main, leave=False)
    model.eval()
    with bar as progress, gathered_for_inference(model, config.gather, ranks) as synced:

        def ask(questions: Sequence[Question]) -> list[Answered]:
            known = broadcast(session.on_rank_0(lambda: recall(identity, questions))) if identity else None
            if known is not None:
                LOG.info(f"{doing}: {len(known)} answers of this model are known from before")
                return known
            keys = [question.key for question in questions]
            of_these = {i: answered[key] for i, key in enumerate(keys) if key in answered}

            def on_round(fresh: dict[int, Answered]) -> None:
                session.on_rank_0(lambda: folder.append_answers(name, {keys[i]: each for i, each in fresh.items()}))
                progress.update(len(fresh))
                if session.stop.agreed():
                    raise Stopped(f"while {doing}, after {progress.n}{of_total} answers")

            how = (config.batch_size, ranks, of_these, on_round, synced)
            try:
                given = (answer or answer_questions)(model, tokenizer, questions, *how)
            except (Stopped, UserError):
                raise
            except Exception as error:
                if ranks.size == 1:
                    raise
                raise RankFailed(f"{doing}: rank {ranks.rank}: {type(error).__name__}: {error}") from error
            if identity:
                session.on_rank_0(lambda: remember(identity, questions, given))
            return given

        yield ask
