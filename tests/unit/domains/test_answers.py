"""Answers to pictures, compared with CLIPModel's own forward pass; prompts in chunks, batches of any size."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks, start
from codyra_llm.domains.images import answers
from codyra_llm.domains.images.contrastive import ContrastiveObjective
from codyra_llm.domains.images.towers import Features, padded
from codyra_llm.generation.generate import Answered, Question
from codyra_llm.planning.run_plan import RunPlan, plan_run
from tests.clip import clip_run, color_stream

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(("chunk", "batch"), [(128, 16), (2, 3), (1, 1), (7, 100)])
def test_answers_are_the_model_s_own(
    plan: RunPlan, model: Any, monkeypatch: pytest.MonkeyPatch, chunk: int, batch: int
) -> None:
    monkeypatch.setattr(answers, "PROMPTS_AT_ONCE", chunk)
    rows: list[Any] = [*plan.test_examples[0], *plan.test_examples[1]]
    rounds: list[int] = []
    known = {2: Answered("0", 0, 1.5, False)}
    given = answers.answer_pictures(
        model,
        plan.source.tokenizer,
        [Question(row, 0) for row in rows],
        batch,
        answered=known,
        on_round=lambda fresh: rounds.append(len(fresh)),
    )
    assert given[2] == known[2], "what was answered is not asked again"
    assert sum(rounds) == len(rows) - 1
    space = rows[0].space
    with torch.no_grad():
        logits = model(
            input_ids=padded(space.prompts, space.end),
            pixel_values=space.pixels.to_score([row.picture for row in rows]),
        ).logits_per_image
    for number, (row, answer) in enumerate(zip(rows, given, strict=True)):
        if number == 2:
            continue
        (truth,) = row.answer
        assert int(answer.text) == int(logits[number].argmax())
        assert answer.loss == pytest.approx(-logits[number].log_softmax(-1)[truth].item(), abs=1e-4)
        own = logits[number, row.own.start : row.own.stop]
        assert answer.greedy == (int(own.argmax()) + row.own.start == truth)


def test_keys_name_picture_class_and_all_prompts(plan: RunPlan) -> None:
    keys = {Question(row, 0).key for rows in plan.test_examples for row in rows}
    assert len(keys) == sum(map(len, plan.test_examples))
    other = plan_run(clip_run(Path(plan.source.path), Path(plan.source.path)), ONE, color_stream(names=("warm",)))
    assert {Question(row, 0).key for row in other.test_examples[0]}.isdisjoint(keys), "they are told among others"


class Engine:
    """A stand-in with the parts of DeepSpeed's engine that an objective uses."""

    def __init__(self, model: Any, accumulation: int) -> None:
        self.module, self.accumulation = Features(model), accumulation

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)

    def gradient_accumulation_steps(self) -> int:
        return self.accumulation


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 5])
def test_a_step_that_is_cut_up_has_the_same_gradient(plan: RunPlan, model: Any, micro: int) -> None:
    task = plan.batches[1]

    def gradients(size: int) -> tuple[float, list[torch.Tensor]]:
        batches = GlobalBatches(task.own, 8, size, 1, task.seed, task.task, steps=3)
        total = 0.0
        model.requires_grad_(True).zero_grad()
        objective = ContrastiveObjective(Engine(model, batches.accumulation), batches, start())
        for loss, parts in objective.passes(1):
            (loss / batches.accumulation).backward()
            total += float(parts[0])
        found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        model.requires_grad_(False)
        return objective.mean(1, total), found

    (whole, expected), (cut, found) = gradients(8), gradients(micro)
    assert cut == pytest.approx(whole, abs=1e-5)
    assert math.isfinite(whole) and len(found) == len(expected) > 70
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
