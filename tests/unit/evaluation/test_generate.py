"""Batched answers and losses equal those of one row at a time, on every architecture."""

import random

import pytest
import torch

from codyra_llm.config import EvaluateConfig
from codyra_llm.data.batches import collate
from codyra_llm.data.encode import Example
from codyra_llm.data.stream import Task, TaskSpec
from codyra_llm.engine.launch import World
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.evaluation import evaluate
from codyra_llm.evaluation.generate import Answered, Question, answer_questions, cut_at_stop
from tests.models import CONFIGS, tiny_model


class NumberTokenizer:
    """Spells token ids as numbers."""

    pad_token_id, eos_token_id = 0, 2

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(str(i) for i in ids)

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row) for row in rows.tolist()]


def some_examples(n: int = 9) -> list[Example]:
    """Prompts of 1 to 40 tokens, some beyond the tiny models' sliding window, and answers of 2 to 25."""
    rng = random.Random(0)
    return [
        Example(
            [1] + [rng.randrange(3, 512) for _ in range(rng.randrange(40))],
            [rng.randrange(3, 512) for _ in range(rng.randrange(1, 25))] + [2],
        )
        for _ in range(n)
    ]


def answer(model, examples: list[Example], limit: int, stop: list[str] = (), batch_size: int = 16) -> list[Answered]:
    """All examples with the same limit and stops."""
    questions = [Question(example, limit, stop) for example in examples]
    return answer_questions(model, NumberTokenizer(), questions, batch_size)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_equals_one_row_at_a_time(architecture: str) -> None:
    model, examples = tiny_model(architecture), some_examples()
    batched = answer(model, examples, 10, batch_size=4)
    for example, answered in zip(examples, batched, strict=True):
        batch = collate([example], pad_token_id=0)
        assert answered.loss == pytest.approx(
            float(AnswerLoss(model)(batch.input_ids, batch.labels).detach()), abs=1e-3
        )
        output = model.generate(
            torch.tensor([example.prompt]), do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0
        )
        ids = output[0, len(example.prompt) :].tolist()
        ids = ids[: ids.index(2)] if 2 in ids else ids
        assert answered.text == " ".join(map(str, ids))
        assert answered.tokens == len(ids)


def test_stop_strings_end_an_answer_and_are_left_out() -> None:
    model, examples = tiny_model(), some_examples(3)
    whole = answer(model, examples, 10)
    stop = whole[0].text.split()[3]
    cut = answer(model, examples, 10, [stop])
    assert cut[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert cut[0].tokens < 10


def test_a_models_sampling_defaults_are_not_used() -> None:
    model, examples = tiny_model(), some_examples(4)
    expected = answer(model, examples, 8)
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 3.0
    assert answer(model, examples, 8) == expected
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize(
    ("settings", "longest"),
    [({}, 6), ({"max_new_tokens": 3}, 3), ({"max_new_tokens": 30}, 6), ({"parity": True}, 512)],
)
def test_how_long_an_answer_may_be(settings: dict, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def record(model, tokenizer, questions, *rest):
        asked.extend(questions)
        return [Answered("x", 1, 1.0) for _ in questions]

    monkeypatch.setattr(evaluate, "answer_questions", record)
    rows = [{"prompt": "p", "answer": "a"}]
    task = Task("t", TaskSpec("accuracy", max_new_tokens=6, stop=(";",)), rows, rows)
    world, (example,) = World(0, 1, torch.device("cpu")), some_examples(1)
    evaluate.evaluate_tasks(None, None, [task], [[example]], EvaluateConfig(**settings), world)
    assert asked == [Question(example, longest, () if settings.get("parity") else (";",))]


def test_rows_of_one_batch_keep_their_own_limits_and_stops() -> None:
    model, examples = tiny_model(), some_examples(4)
    alone = [answer(model, [example], limit)[0] for example, limit in zip(examples, (2, 9, 5, 9), strict=True)]
    stop = alone[3].text.split()[4]
    questions = [Question(example, limit) for example, limit in zip(examples[:3], (2, 9, 5), strict=True)]
    together = answer_questions(model, NumberTokenizer(), [*questions, Question(examples[3], 9, [stop])])
    assert [row.text for row in together[:3]] == [row.text for row in alone[:3]]
    assert together[3].text == alone[3].text[: alone[3].text.index(stop)]
    assert [row.tokens for row in together[:3]] == [row.tokens for row in alone[:3]]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("B\nbecause", ["\n"], "B"),
        ("\n B\nbecause", ["\n"], "\n B"),
        ("return x <EOL> y\n", ["\n", "<EOL>"], "return x "),
        ("\n\n", ["\n"], "\n\n"),
        ("no stop", ["\n"], "no stop"),
        ("", ["\n"], ""),
    ],
)
def test_where_an_answer_is_cut(text: str, stop: list[str], expected: str) -> None:
    assert cut_at_stop(text, stop) == expected
