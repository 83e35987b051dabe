"""The answer-only loss compared with transformers' loss on every architecture; the learning rate; DeepSpeed JSON."""

import json
from pathlib import Path

import pytest
import torch

from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.config import TrainConfig
from codyra_llm.data.batches import collate, pack
from codyra_llm.engine.ds_config import complete, read_deepspeed_json
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.example import Example
from tests.conftest import REPOSITORY
from tests.models import CONFIGS, tiny_model

EXAMPLES = [
    Example([1, *range(10, 40)], [50, 51, 2]),
    Example([1, 7, 8], [*range(100, 120), 2]),
    Example([1, 7, 8, 9], [2]),
]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_equals_the_models_own_loss(architecture: str) -> None:
    model = tiny_model(architecture)
    batch = collate(EXAMPLES, pad_token_id=0)
    ours = AnswerLoss(model)(batch.input_ids, batch.labels)
    mask = torch.tensor([[1] * len(e) + [0] * (batch.input_ids.shape[1] - len(e)) for e in EXAMPLES])
    theirs = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
    answer_tokens = sum(len(example.answer) for example in EXAMPLES)
    torch.testing.assert_close(ours / answer_tokens, theirs, atol=1e-5, rtol=1e-5)


def test_the_sum_does_not_depend_on_padding() -> None:
    model = tiny_model()
    loss = AnswerLoss(model)
    together = collate(EXAMPLES, pad_token_id=0)
    alone = [collate([example], pad_token_id=0) for example in EXAMPLES]
    total = sum(loss(batch.input_ids, batch.labels) for batch in alone)
    torch.testing.assert_close(loss(together.input_ids, together.labels), total, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(architecture: str, attention: str) -> None:
    found = []
    for batches in ([pack(EXAMPLES)], [collate([example], pad_token_id=0) for example in EXAMPLES]):
        model = tiny_model(architecture)
        if architecture == "gemma2" and attention == "sdpa":
            pytest.skip("transformers has no sdpa for Gemma 2")
        model.set_attn_implementation(attention)
        loss = sum(AnswerLoss(model)(batch.input_ids, batch.labels, batch.position_ids) for batch in batches)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_logits_in_chunks_give_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    widths: list[int] = []
    for at_once in (2**25, 5 * 768 * 4):
        model = tiny_model(architecture)
        model.get_output_embeddings().register_forward_hook(lambda *hook: widths.append(len(hook[-1])))
        monkeypatch.setattr("codyra_llm.models.head.LOGITS_BYTES", at_once)
        batch = collate(EXAMPLES, pad_token_id=0)
        loss = AnswerLoss(model)(batch.input_ids, batch.labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert widths == [25] + 2 * [5] * 5
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_cosine_starts_at_the_peak_and_ends_near_zero() -> None:
    factors = [cosine_factor(step, 10) for step in range(10)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.03
    assert [cosine_factor(step, 10, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_batch_sizes_come_from_the_run_alone() -> None:
    completed = complete({"zero_optimization": {"stage": 2}}, TrainConfig(global_batch_size=32), world_size=4)
    assert completed["train_batch_size"] == 32
    assert completed["gradient_accumulation_steps"] == 8
    assert completed["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_deepspeed_files_are_accepted(file: Path) -> None:
    assert read_deepspeed_json(str(file)) == json.loads(file.read_text())
