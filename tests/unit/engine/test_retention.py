"""The terms that retention adds to the loss, their tokens, and the text that the model generates for it."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from codyra_llm.adapter import CoDyRAConfig, inject
from codyra_llm.adapter.layer import gated_layers, without_branches
from codyra_llm.config import RetentionConfig, load_config
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.retention import KINDS, Retention, texts_of_state, texts_state, top_tokens
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.generation.sample import sample_texts
from codyra_llm.methods import METHODS
from codyra_llm.workflows.retention import leading_directions, protect
from tests.conftest import REPOSITORY
from tests.models import tiny_model

EXAMPLES = [Example([1, *range(10, 10 + 3 * n)], [50 + n, 51, 2]) for n in range(2, 9)]
EXAMPLES.insert(3, Example([1], [4, 5, 6, 2]))  # as with raw text
TEXTS = [[1, 20, 21], [1, *range(30, 45)], [1, 7], [1, *range(60, 70)]]
EACH = {"prompts": 0.5, "answers": 1.5, "own_text": 2.0, "texts_per_step": 3}


def retention(packing: str = "bucket", world: int = 1, micro: int = 4, **settings: Any) -> Retention:
    batches = GlobalBatches(EXAMPLES, 8, micro, 1, 0, "task", world, packing=packing)
    return Retention(RetentionConfig(**{**EACH, **settings}), TEXTS, batches)


@pytest.mark.parametrize("packing", ["none", "bucket", "pack"])
@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 3), (2, 3), (3, 2)])
def test_the_loss_is_that_of_two_models(packing: str, world: int, micro: int) -> None:
    """Sums over passes and ranks: the NLL of the answers, and KL(before || now) of each kind of token."""
    model = tiny_model()
    inject(model, CoDyRAConfig(rank=4), seed="0")
    for _, layer in gated_layers(model):
        torch.nn.init.normal_(layer.B, std=0.3)
    ours, total, seen = retention(packing, world, micro), torch.zeros(4), []
    for rank in range(world):
        for number, batch in enumerate(ours.batches.micro_batches(0, rank)):
            batch = ours.with_kinds(batch, 0, number, rank)
            seen.append([int((batch.kinds == kind).sum()) for kind in KINDS])
            parts = (batch.input_ids, batch.labels, batch.position_ids, batch.numbers, batch.kinds)
            total += AnswerLoss(model)(*parts).detach()
    expected = torch.zeros(4)
    with torch.no_grad():
        for example in EXAMPLES:
            ids = torch.tensor([example.prompt + example.answer])
            logits = model(ids).logits[0]
            start = len(example.prompt) - 1
            expected[0] += functional.cross_entropy(logits[start:-1], ids[0, start + 1 :], reduction="sum")
            expected[1] += divergence(model, ids)[:start].sum()
            expected[2] += divergence(model, ids)[start:-1].sum()
        for text in ours.texts_of(0):
            expected[3] += divergence(model, torch.tensor([TEXTS[text]]))[:-1].sum()
    torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-4)
    assert np.sum(seen, axis=0).tolist() == ours.positions(0)


@torch.no_grad()
def divergence(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    now = model(ids).logits[0].log_softmax(-1)
    with without_branches(model):
        before = model(ids).logits[0].log_softmax(-1)
    return (before.exp() * (before - now)).sum(-1)


@pytest.mark.parametrize("packing", ["none", "pack"])
def test_of_the_likeliest_tokens_it_is_at_most_what_it_is_of_all(packing: str) -> None:
    model = tiny_model()
    rows = [torch.tensor([text]) for text in TEXTS]
    with torch.no_grad():
        logits = [model(ids).logits[0, :-1] for ids in rows]
    inject(model, CoDyRAConfig(rank=4), seed="0")
    for _, layer in gated_layers(model):
        torch.nn.init.normal_(layer.B, std=0.3)
    found = []
    for count in (1, 4, 10**9):
        ours = retention(packing, micro=8, prompts=0.0, answers=0.0, top_k=count)
        ours.known = [top_tokens(each, count) for each in logits]
        (batch,) = ours.batches.micro_batches(0, 0)
        batch = ours.with_kinds(batch, 0, 0, 0)
        parts = (batch.input_ids, batch.labels, batch.position_ids, batch.numbers, batch.kinds, batch.known)
        loss = AnswerLoss(model)(*parts)
        found.append(float(loss[3]))
        assert loss[1] == loss[2] == 0
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss[3], [*_branches(model)]))
    whole = sum(float(divergence(model, rows[text])[:-1].sum()) for text in ours.texts_of(0))
    assert 0 < found[0] < found[1] < found[2] == pytest.approx(whole, rel=1e-4)
    with pytest.raises(ValueError, match=r"retention\.top_k goes with retention\.own_text alone"):
        RetentionConfig(own_text=1.0, prompts=1.0, top_k=3).check()


def _branches(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (layer.B for _, layer in gated_layers(model))


def test_texts_of_a_step_are_drawn_by_the_step_alone() -> None:
    drawn = [retention().texts_of(step) for step in range(20)]
    assert drawn == [retention("pack", 2, 1).texts_of(step) for step in range(20)]
    assert {len(set(numbers)) for numbers in drawn} == {3} and len({tuple(numbers) for numbers in drawn}) > 5
    assert retention(own_text=0.0).texts_of(0) == [] and retention(own_text=0.0).positions(0)[2] == 0


def test_a_budget_moves_the_weights_towards_it() -> None:
    ours = retention(budget=0.1)
    for _ in range(5):
        ours.update({"prompts": 0.3, "own_text": 0.01})
    assert ours.factor == pytest.approx(math.exp(0.5)), "the largest one counts"
    assert ours.weights(0) == pytest.approx(
        [math.exp(0.5) * weight / count for weight, count in zip((0.5, 1.5, 2.0), ours.positions(0), strict=True)]
    )
    for _ in range(200):
        ours.update({"prompts": 0.0})
    assert ours.factor == 1e-2
    fixed = retention()
    fixed.update({"prompts": 5.0})
    assert fixed.factor == 1
    with pytest.raises(ValueError, match=r"retention\.budget needs"):
        RetentionConfig(budget=0.1).check()


def test_texts_survive_a_checkpoint() -> None:
    assert texts_of_state(texts_state(TEXTS)) == TEXTS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(REPOSITORY / "tasks" / "nano" / "model")
    return found


def test_what_a_model_writes_is_as_likely_as_its_entropy_says(tokenizer: PreTrainedTokenizerBase) -> None:
    model, alone = tiny_model(vocab_size=len(tokenizer), seed=3), start()
    texts = sample_texts(model, tokenizer, 150, 24, "seed", alone)
    assert texts == sample_texts(model, tokenizer, 150, 24, "seed", alone)
    assert texts[:40] == sample_texts(model, tokenizer, 40, 24, "seed", alone), "whatever else is written"
    assert texts != sample_texts(model, tokenizer, 150, 24, "other", alone)
    nats, entropy = [], []
    for text in texts:
        assert 2 <= len(text) <= 24
        with torch.no_grad():
            chances = model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
        first = 0 if tokenizer.bos_token_id is None else 1  # text[first] is drawn uniformly, not generated
        nats += [-float(chances[at, text[at + 1]]) for at in range(first, len(text) - 1)]
        entropy += (-(chances.exp() * chances).sum(-1))[first:].tolist()
    error = np.std(np.array(nats) - np.array(entropy)) / len(nats) ** 0.5
    assert abs(np.mean(nats) - np.mean(entropy)) < 4 * error


def test_branches_do_not_read_protected_directions() -> None:
    model = tiny_model()
    name = "model.layers.0.mlp.up_proj"
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(32.0))
    moment = inputs.T @ inputs / 200
    directions = leading_directions({name: moment}, 0.25)
    values, vectors = np.linalg.eigh(moment.double().numpy())
    expected = vectors[:, np.argsort(values)[-8:]]
    np.testing.assert_allclose(directions[name] @ directions[name].T, expected @ expected.T, atol=1e-5)
    assert leading_directions({name: moment}, 0.999)[name].shape == (32, 31)
    inject(model, CoDyRAConfig(rank=4, target_modules=(name,)), seed="0")
    ((_, layer),) = gated_layers(model)
    norms = layer.A.norm(dim=1).clone()
    protect(model, directions)
    torch.testing.assert_close(layer.A.norm(dim=1), norms)
    torch.nn.init.normal_(layer.B)
    torch.nn.init.normal_(layer.A)
    read, unread = directions[name][:, 0], torch.randn(32)
    unread -= directions[name] @ (directions[name].T @ unread)
    change = layer(torch.stack([read, unread])) - layer.base(torch.stack([read, unread]))
    assert float(change[0].abs().max()) < 1e-5 < float(change[1].abs().max())


def test_directions_that_are_read_the_less_the_more_they_are_used() -> None:
    """A direction of energy e is scaled by 1 - e / (e + c); directions that were already blocked are scaled by zero."""
    model, name = tiny_model(), "model.layers.0.mlp.up_proj"
    energies = torch.arange(1.0, 33.0)
    directions = leading_directions({name: torch.diag(energies)}, 0.25, softly=True)
    inject(model, CoDyRAConfig(rank=4, target_modules=(name,)), seed="0")
    ((_, layer),) = gated_layers(model)
    layer.blocked_inputs = torch.eye(32)[:, [3, 30]]
    protect(model, directions, softly=True)
    torch.nn.init.normal_(layer.B)
    change = layer(torch.eye(32)) - layer.base(torch.eye(32))
    left = 25 / (energies + 25)  # c is the eighth largest energy, the limit of the leading quarter
    left[[3, 30]] = 0
    torch.testing.assert_close(change, left[:, None] * (layer.A.T @ layer.B.T), atol=1e-5, rtol=1e-4)


def test_of_so_many_steps_the_last_measures_it() -> None:
    ours, always = retention(every=3), retention()
    for step in range(2, 9, 3):
        assert ours.positions(step) == always.positions(step) and ours.texts_of(step) == always.texts_of(step)
        assert ours.weights(step) == pytest.approx([3 * weight for weight in always.weights(step)])
    assert [step for step in range(9) if any(ours.positions(step)) or ours.texts_of(step)] == [2, 5, 8]
    assert ours.means(0, [0.0, 0.0, 0.0]) == {}
    assert retention(every=3, own_text=0.0).added_cost == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("method", ["seqlora", "ewc", "gem", "slao", "osft"])
def test_what_continues_a_branch_loses_no_directions(method: str) -> None:
    config = load_config(None, {"method": method, "retention.protected": 0.2})
    with pytest.raises(UserError, match=f"method {method}: it continues a branch"):
        METHODS[method](config).check_run(zero_stage=0)
