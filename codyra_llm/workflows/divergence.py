"""KL divergence of a model from the one before the last task, which is the model without the task's update."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codyra_llm.adapter.merging import Deltas, difference
from codyra_llm.adapter.offset import added
from codyra_llm.data.encode import padding_id
from codyra_llm.distributed.ranks import broadcast
from codyra_llm.engine.zero import gathered_for_inference
from codyra_llm.evaluation.divergence import divergence
from codyra_llm.evaluation.matrix import Stage
from codyra_llm.example import Example
from codyra_llm.generation.generate import Answered, Question
from codyra_llm.ledger.entry import Combine, read_entry, summed
from codyra_llm.planning.run_plan import RunPlan
from codyra_llm.results.schema import TaskDivergence
from codyra_llm.workflows.run_state import RunState

ROLLING = "loglikelihood_rolling"  # lm-eval's name for whole texts


def measure_divergence(run: RunState, stage: Stage) -> TaskDivergence:
    """Measures how far a stage's task, which is merged, has moved the model's outputs.

    It is not for methods with parts that are active at inference only (`Hooks.serving`), which it would leave out.
    """
    ranks, plan, config = run.session.ranks, run.plan, run.config.evaluate
    updates: Deltas = broadcast(run.session.on_rank_0(lambda: _last_change(run.entry_folders, run.combine)))
    taken_back = {name: (-B.to(ranks.device), A.to(ranks.device)) for name, (B, A) in updates.items()}
    own, earlier = plan.test_examples[stage.number - 1], plan.test_examples[: stage.number - 1]
    texts = _texts(plan)
    run.model.eval()
    with gathered_for_inference(run.model, config.gather, ranks):
        how = (padding_id(plan.source.tokenizer), config.batch_size, ranks)

        def of(rows: Sequence[Example]) -> float:
            return divergence(run.model, rows, lambda: added(run.model, taken_back), *how)

        of_earlier = [of(rows) for rows in earlier]
        return TaskDivergence(
            stage.task,
            own=of(own),
            earlier=sum(of_earlier) / len(of_earlier) if of_earlier else None,
            text=of(texts) if texts else None,
        )


def _last_change(folders: Sequence[Path], combine: Combine | None) -> Deltas:
    """Returns the change of each projection by the last entry."""
    if not combine:
        return read_entry(folders[-1])
    before = dict(summed(folders[:-1], combine=combine)) if folders[:-1] else {}
    change = {}
    for name, factors in summed(folders, combine=combine):
        change[name] = difference(factors, before[name]) if name in before else factors
    return change


def _texts(plan: RunPlan) -> list[Example]:
    """Returns the windows of the suites that measure the likelihood of whole texts; all their tokens are predicted."""
    suites: Sequence[Any] = plan.suites  # of the harness: only text measures divergence
    rolling = [suite for suite in suites if {task.OUTPUT_TYPE for task in suite.tasks.values()} == {ROLLING}]
    if not rolling:
        return []
    from codyra_llm.evaluation.general.lm import BatchedLM  # the harness takes seconds to import
    from codyra_llm.evaluation.general.score import score_suite

    asked: list[Example] = []

    def ask(questions: Sequence[Question]) -> list[Answered]:
        asked.extend(question.example for question in questions)
        return [Answered("", 0, 0.0, False)] * len(questions)

    lm = BatchedLM(plan.source.tokenizer, ask, plan.source.context_length, plan.general_template)
    for suite in rolling:
        score_suite(suite, lm)
    return asked
