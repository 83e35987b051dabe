"""Terms that methods add to a step of pictures, and their measurements, compared with the equations written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from codyra_llm.adapter.injection import find_targets
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks, start
from codyra_llm.domains.images.contrastive import ContrastiveObjective
from codyra_llm.domains.images.passes import PicturePasses
from codyra_llm.domains.images.rows import ImageExample, ImageTask
from codyra_llm.domains.images.towers import Features
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.methods.hooks import AnswerTokens, Hooks
from codyra_llm.planning.run_plan import RunPlan, plan_run
from tests.clip import clip_run, color_stream

ONE = Ranks(0, 1, torch.device("cpu"))


class Engine:
    """A stand-in with the parts of DeepSpeed's engine that an objective uses."""

    def __init__(self, model: Any, accumulation: int, hooks: Hooks) -> None:
        self.module, self.accumulation = Features(model, hooks), accumulation

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)

    def gradient_accumulation_steps(self) -> int:
        return self.accumulation


class Noted(Hooks):
    """Adds squared logits, weighted by row and label, to the loss, and records its arguments."""

    has_teacher = True

    def __init__(self, among_all: bool) -> None:
        super().__init__()
        self.among_all = among_all
        self.seen: list[tuple[torch.Tensor, AnswerTokens, torch.Tensor]] = []

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        assert teacher is not None
        self.seen.append((logits.detach(), tokens, teacher))
        weights = (1 + tokens.rows)[:, None] * (1 + functional.one_hot(tokens.targets, logits.shape[1]))
        return 1e-3 * (weights * logits.square()).sum()


def batches_of(plan: RunPlan, micro: int = 8) -> GlobalBatches:
    """Returns the batches of the second domain, with three replayed pictures of the first."""
    earlier, own = plan.batches
    return GlobalBatches(own.own, 8, micro, 1, 3, "cold", steps=3, replayed=list(earlier.own)[1:12:5])


def features(model: Any, batches: GlobalBatches, step: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Returns the pictures of a step, their features, and the features of all seven prompts."""
    objective = ContrastiveObjective(Engine(model, 1, Hooks()), batches, start())
    rows = batches.rows_of(step)
    images, texts = Features(model)(objective._pixels(rows, step), objective._ids(range(7)))
    return [batches.examples[row] for row in rows], images, texts


def step_with_both(plan: RunPlan) -> int:
    batches = batches_of(plan)
    return next(step for step in range(3) if len({own(batches, row) for row in batches.rows_of(step)}) == 2)


def own(batches: GlobalBatches, row: int) -> range:
    example = batches.examples[row]
    assert isinstance(example, ImageExample)
    return example.own


def test_a_kept_picture_is_told_among_the_classes_of_its_own_task(plan: RunPlan, model: Any) -> None:
    batches, step = batches_of(plan), step_with_both(plan)
    objective = ContrastiveObjective(Engine(model, 1, Hooks()), batches, start())
    ((_, parts),) = objective.passes(step)
    with torch.no_grad():
        shown, images, texts = features(model, batches, step)
        logits = model.logit_scale.exp() * images @ texts.T
    of_images = [
        -row[example.own.start : example.own.stop].log_softmax(-1)[example.answer[0] - example.own.start]
        for row, example in zip(logits, shown, strict=True)
    ]
    of_texts = [-logits[:, example.answer[0]].log_softmax(-1)[place] for place, example in enumerate(shown)]
    expected = torch.stack(of_images).mean() + torch.stack(of_texts).sum() / 7
    assert objective.mean(step, float(parts[0])) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("among_all", [False, True])
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_a_step_with_kept_pictures_and_a_term_has_the_same_gradient(
    plan: RunPlan, model: Any, micro: int, among_all: bool
) -> None:
    def gradients(size: int) -> tuple[float, list[torch.Tensor], Noted]:
        batches, hooks, total = batches_of(plan, size), Noted(among_all), 0.0
        model.requires_grad_(True).zero_grad()
        objective = ContrastiveObjective(Engine(model, batches.accumulation, hooks), batches, start())
        for loss, parts in objective.passes(step_with_both(plan)):
            (loss / batches.accumulation).backward()
            total += float(parts[0])
        found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        model.requires_grad_(False)
        return total, found, hooks

    (whole, expected, hooks), (cut, found, _) = gradients(8), gradients(micro)
    assert cut == pytest.approx(whole, abs=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert [logits.shape[1] for logits, _, _ in hooks.seen] == ([7] if among_all else [3, 4])
    assert sum(len(logits) for logits, _, _ in hooks.seen) == 8
    for logits, tokens, teacher in hooks.seen:
        torch.testing.assert_close(teacher, logits, msg="the model has no branches")
        assert tokens.targets.max() < logits.shape[1]


def test_passes_over_pictures_tell_them_as_the_model_does(plan: RunPlan, model: Any) -> None:
    rows: list[Any] = [*plan.test_examples[0][:4], *plan.test_examples[1][:5]]
    passes = PicturePasses(Features(model), {}, 0, start())
    space = rows[0].space
    with torch.no_grad():
        images, texts = Features(model)(
            space.pixels.to_score([row.picture for row in rows]),
            torch.tensor([[*each, *[space.end] * (32 - len(each))] for each in space.prompts]),
        )
        logits = model.logit_scale.exp() * images @ texts.T
        parts = [logits[place, row.own.start : row.own.stop] for place, row in enumerate(rows)]
        expected = [
            -of_row.log_softmax(-1)[row.answer[0] - row.own.start] for of_row, row in zip(parts, rows, strict=True)
        ]
        assert float(passes.nll(rows)) == pytest.approx(float(torch.stack(expected).sum()), abs=1e-4)
        assert float(passes.divergence(rows)) == pytest.approx(0, abs=1e-5)
        for found, of_row in zip(passes.outputs(rows, lambda given: given), parts, strict=True):
            torch.testing.assert_close(found[0], of_row, atol=1e-4, rtol=1e-4)


def test_inputs_are_those_of_pictures_and_of_prompts(plan: RunPlan, model: Any) -> None:
    adapter = clip_run(Path(plan.source.path), Path(plan.source.path)).adapter
    projections = {name: model.get_submodule(name) for name in find_targets(model, adapter)}
    rows: list[Any] = list(plan.test_examples[1][::4])
    moments = PicturePasses(Features(model), projections, 0, start()).input_moments(rows)
    assert moments.keys() == projections.keys()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in projections}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0][0]))
        for name, module in projections.items()
    ]
    space = rows[0].space
    with torch.no_grad():
        for row in rows:
            model.vision_model(pixel_values=space.pixels.to_score([row.picture]))
        for number in range(3, 7):  # only the prompts of its own task, each once
            model.text_model(input_ids=torch.tensor([space.prompts[number]]))
    for handle in handles:
        handle.remove()
    for name, inputs in seen.items():
        tokens = torch.cat(inputs)
        torch.testing.assert_close(moments[name], tokens.T @ tokens / len(tokens), atol=1e-4, rtol=1e-4, msg=name)
    shared = [f"vision_model.encoder.layers.0.self_attn.{part}_proj" for part in "qkv"]
    assert len({id(moments[name]) for name in shared}) == 1, "what reads the same input shares a moment"


def test_what_a_language_model_alone_can_give(model: Any) -> None:
    passes = PicturePasses(Features(model), {}, 0, start())
    with pytest.raises(UserError, match="texts of its own"):
        passes.own_texts(1, 2)
    with pytest.raises(UserError, match="states of prompts"):
        passes.prompt_states([Example([], [0])])


def test_hashes_change_with_pictures_classes_and_prompts() -> None:
    first, other = (color_stream(names=names).tasks[0] for names in (("warm",), ("cold",)))
    again = color_stream(names=("warm",)).tasks[0]
    assert isinstance(first, ImageTask) and isinstance(other, ImageTask) and isinstance(again, ImageTask)
    assert first.hashes() == again.hashes()
    assert list(first.hashes()) == ["train", "test", "classes"]
    assert not set(first.hashes().values()) & set(other.hashes().values())


def test_pictures_to_validate_on_are_taken_from_train(plan: RunPlan) -> None:
    config = clip_run(Path(plan.source.path), Path(plan.source.path), **{"train.validation": 0.25})
    carved = plan_run(config, ONE, color_stream())
    assert [len(rows) for rows in carved.validation] == [3, 4]
    for task, before, batches, validation in zip(
        carved.stream, plan.stream, carved.batches, carved.validation, strict=True
    ):
        assert isinstance(task, ImageTask) and isinstance(before, ImageTask)
        assert len(batches.own) == len(before.train) - len(validation)
        assert not set(task.keys("train")) & {row.picture.sha256.hex() for row in validation}  # type: ignore[attr-defined]
        tested = task.tested_on_validation()
        assert [picture.sha256 for picture in tested.pictures["test"]] == [
            row.picture.sha256  # type: ignore[attr-defined]
            for row in validation
        ]
        assert len(tested.test) == len(validation) and not tested.validation
