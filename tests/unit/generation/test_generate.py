"""Batched answers and losses equal those of one row at a time, on every architecture."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from codyra_llm.config import EvaluateConfig
from codyra_llm.data.batches import collate
from codyra_llm.data.stream import Task, TaskSpec
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.example import Example
from codyra_llm.generation.generate import Answered, Question, answer_questions, cut_at_stop
from codyra_llm.generation.prompt_lookup import Draft
from tests.models import CONFIGS, tiny_model


class NumberTokenizer:
    """Decodes token ids as numbers."""

    pad_token_id, eos_token_id = 0, 2

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(str(i) for i in ids)

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row) for row in rows.tolist()]


def some_examples(n: int = 9) -> list[Example]:
    """Returns prompts of 1 to 40 tokens, some longer than the tiny models' sliding window, and answers of 2 to 25."""
    rng = random.Random(0)
    return [
        Example(
            [1] + [rng.randrange(3, 512) for _ in range(rng.randrange(40))],
            [rng.randrange(3, 512) for _ in range(rng.randrange(1, 25))] + [2],
        )
        for _ in range(n)
    ]


def answer(
    model: PreTrainedModel, examples: list[Example], limit: int, stop: Sequence[str] = (), batch_size: int = 16
) -> list[Answered]:
    """Answers all examples with the same limit and stop strings."""
    questions = [Question(example, limit, stop) for example in examples]
    return answer_questions(model, NumberTokenizer(), questions, batch_size)


def read_columns(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that records the number of positions of each later forward pass."""
    columns: list[int] = []
    decoder = model.get_decoder()
    forward = decoder.forward

    def counted(**inputs: Any) -> Any:
        columns.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", counted)
    return columns


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
def test_how_long_an_answer_may_be(settings: dict[str, Any], longest: int) -> None:
    asked: list[Question] = []

    def record(questions: Sequence[Question]) -> Any:
        asked.extend(questions)
        return [Answered("x", 1, 1.0, False) for _ in questions]

    rows = [{"prompt": "p", "answer": "a"}]
    task = Task("t", TaskSpec("accuracy", max_new_tokens=6, stop=(";",)), rows, rows)
    (example,) = some_examples(1)
    evaluate_tasks([task], [[example]], EvaluateConfig(**settings), record)
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


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_prompts_begin_with_is_read_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of rows that share a prefix, and rows without one; models with narrow windows read it for each row."""
    model, rng = tiny_model(architecture), random.Random(1)
    shared = [[rng.randrange(3, 512) for _ in range(length)] for length in (70, 50)]
    examples = some_examples(9)
    examples = [
        Example((shared[k % 4] if k % 4 < 2 else []) + each.prompt, each.answer) for k, each in enumerate(examples)
    ]
    alone = [answer(model, [example], 10)[0] for example in examples]
    columns = read_columns(model, monkeypatch)
    together = answer(model, examples, 10, batch_size=9)
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.loss for each in together] == pytest.approx([each.loss for each in alone], abs=1e-3)
    if architecture in ("llama", "gemma", "qwen3"):  # those without windows
        assert columns[0] == 2 * 71  # with the BOS token
        assert sum(columns[:2]) < 9 * max(len(example.prompt) for example in examples) * 0.7


@pytest.mark.parametrize("architecture", CONFIGS)
def test_short_rows_are_not_read_at_the_length_of_long_ones(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and true answers of very different lengths in one batch."""
    model, rng = tiny_model(architecture), random.Random(2)
    examples = [
        Example(*([rng.randrange(3, 512) for _ in range(length)] for length in lengths))
        for lengths in ((150, 2), (5, 90), (140, 1), (9, 80), (7, 3), (60, 2), (3, 85), (4, 1))
    ]
    alone = [answer(model, [example], 6)[0] for example in examples]
    columns = read_columns(model, monkeypatch)
    together = answer(model, examples, 6, batch_size=8)
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.loss for each in together] == pytest.approx([each.loss for each in alone], abs=1e-3)
    whole = 8 * 150 + 8 * 89
    assert sum(columns) < whole * 0.7


def test_choices_of_one_prompt_share_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model(), some_examples(4)
    choices = [Example(each.prompt, choice) for each in examples for choice in ([5], [7, 8, 9], [11, 12])]
    alone = [answer(model, [choice], 0)[0] for choice in choices]
    columns = read_columns(model, monkeypatch)
    together = answer(model, choices, 0, batch_size=4)
    assert [each.loss for each in together] == pytest.approx([each.loss for each in alone], abs=1e-3)
    longest = max(len(each.prompt) for each in examples)
    assert columns == [4 * longest, 4 * 2, 4 * 1]  # a choice of one token needs no additional pass


def test_greedy_tells_whether_a_model_would_say_it() -> None:
    model, (example, *_) = tiny_model(), some_examples(1)
    said = [int(token) for token in answer(model, [example], 6)[0].text.split()]
    (hit, miss) = answer(model, [Example(example.prompt, said[:4]), Example(example.prompt, [*said[:3], 3])], 0)
    assert hit.greedy
    assert not miss.greedy
    assert (hit.text, hit.tokens) == ("", 0)


def test_rows_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model(), [Example(each.prompt, []) for each in some_examples(5)]
    limits = (2, 9, 5, 9, 1)
    alone = [answer(model, [example], limit)[0] for example, limit in zip(examples, limits, strict=True)]
    columns = read_columns(model, monkeypatch)
    monkeypatch.setattr(Draft, "guess", lambda self, most: [])
    questions = [Question(example, limit) for example, limit in zip(examples, limits, strict=True)]
    assert answer_questions(model, NumberTokenizer(), questions) == alone
    assert columns[1:] == [4, 3, 3, 3, 2, 2, 2, 2]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_guesses_save_passes_and_change_no_answer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares long answers, with and without repetition, with those given without guesses."""
    model, examples = tiny_model(architecture), some_examples(6)
    questions = [Question(example, limit) for example, limit in zip(examples, (150, 9, 200, 1, 150, 200), strict=True)]
    columns = read_columns(model, monkeypatch)
    guessed, passes = answer_questions(model, NumberTokenizer(), questions), len(columns)
    monkeypatch.setattr(Draft, "guess", lambda self, most: [])
    assert answer_questions(model, NumberTokenizer(), questions) == guessed
    if architecture in ("llama", "gemma", "qwen3"):  # those without windows
        assert passes < (len(columns) - passes) * 0.75


def test_keys_that_heads_share_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(keys: torch.Tensor, times: int) -> torch.Tensor:
        raise AssertionError(f"keys {tuple(keys.shape)} copied {times} times")

    model, examples = tiny_model("llama"), some_examples()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    expected = answer(model, examples, 30)
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", copied)
    assert answer(model, examples, 30) == expected


def test_a_guess_is_what_followed_the_last_two_tokens_before() -> None:
    draft = Draft([1, 2, 3, 4, 5, 6, 1, 2])
    assert draft.guess(9) == [3, 4, 5]
    assert draft.guess(2) == [3, 4]
    draft.settle([3, 4, 5], [3, 4, 7])
    assert draft.guess(9) == []  # (4, 7) has not occurred before
    draft.settle([], [1, 2])
    assert draft.guess(9) == [3, 4, 7, 1, 2, 3, 4]  # the last occurrence; longer after a good guess, wraps around
    draft.settle([3, 4, 7, 1, 2, 3, 4], [9])
    draft.settle([], [1, 2])
    assert draft.guess(9) == [9, 1, 2]


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


def test_an_answer_ends_at_any_of_the_models_ends() -> None:
    model, examples = tiny_model(), some_examples(4)
    whole = [each.text.split() for each in answer(model, examples, 8)]
    end = next(text[k] for text in whole for k in range(1, len(text)) if text[k] not in text[:k])
    model.generation_config.eos_token_id = [2, int(end)]
    found = [each.text.split() for each in answer(model, examples, 8)]
    assert found != whole
    assert found == [text[: text.index(end)] if end in text else text for text in whole]
