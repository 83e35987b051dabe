"""Judges: an HTTP endpoint that works, is slow, replies nonsense or is down; likelihoods compared with transformers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.evaluation.judge.endpoint import EndpointJudge
from codyra_llm.evaluation.judge.likelihood import LikelihoodJudge
from codyra_llm.generation.generate import answer_questions
from tests.endpoint import serve
from tests.models import tiny_model


def judge_of(url: str, **changes: Any) -> EndpointJudge:
    settings = {"judge": url, "judge_model": "some-model", "timeout": 5.0, "retries": 1, "concurrency": 2, **changes}
    return EndpointJudge(JudgeConfig("", "", (), api_key_variable="SOME_KEY", **settings))


def test_asks_as_an_openai_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with serve(lambda text: f"[[{text}]]") as endpoint:
        for url in (endpoint.url, endpoint.url + "/chat/completions/"):
            replies = judge_of(url)(["A", "B", "C", "A"])
            assert [reply.verdict for reply in replies] == ["A", "B", "C", "A"]
            assert [reply.text for reply in replies] == ["[[A]]", "[[B]]", "[[C]]", "[[A]]"]
        assert set(endpoint.keys) == {"Bearer secret"}
        assert {(body["model"], body["temperature"]) for body in endpoint.asked} == {("some-model", 0)}


@pytest.mark.parametrize("said", ["bananas", (200, "<html>"), (200, "[]"), (200, '{"choices": [{"message": {}}]}')])
def test_nonsense_is_asked_about_again_and_kept_as_it_came(said: Any) -> None:
    with serve(lambda text: said) as endpoint:
        (reply,) = judge_of(endpoint.url, retries=2)(["?"])
        assert (reply.verdict, reply.problem) == (None, None)
        assert reply.text == (said if isinstance(said, str) else said[1])
        assert len(endpoint.asked) == 3


def test_a_server_that_is_busy_is_tried_again() -> None:
    said: Iterator[Any] = iter([(503, "busy"), "[[A]]"])
    with serve(lambda text: next(said)) as endpoint:
        assert judge_of(endpoint.url)(["?"])[0].verdict == "A"
    with serve(lambda text: (503, "busy")) as endpoint:
        assert judge_of(endpoint.url)(["?"])[0].problem == "status 503: busy"
        assert len(endpoint.asked) == 2


def test_slow_and_down() -> None:
    with serve(lambda text: "[[A]]", delay=0.5) as endpoint:
        assert judge_of(endpoint.url, timeout=0.1)(["?"])[0].problem == "no answer within 0.1 s"
        assert len(endpoint.asked) == 2
    assert "Connection refused" in judge_of(endpoint.url, retries=0)(["?"])[0].problem


def test_what_no_further_try_can_help(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda text: (401, "who are you")) as endpoint:
        with pytest.raises(UserError, match=r"status 401: no key was sent; set SOME_KEY \(who are you\)"):
            judge_of(endpoint.url)(["?"])
        monkeypatch.setenv("SOME_KEY", "wrong")
        with pytest.raises(UserError, match="status 401: the key in SOME_KEY is refused"):
            judge_of(endpoint.url)(["?"])
        with pytest.raises(UserError, match="status 404: no such path or model"):
            judge_of(endpoint.url + "/else")(["?"])
        assert len(endpoint.asked) == 3


def test_a_models_verdict_is_the_likeliest(tokenizers_by_family: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer, model = tokenizers_by_family["llama-sentencepiece"], tiny_model("llama")
    judge = LikelihoodJudge(tokenizer, lambda questions: answer_questions(model, tokenizer, questions), None, 40)
    texts = ["Which one?", "Is A better than B?", "word " * 60]
    *judged, too_long = judge(texts)
    for text, reply in zip(texts, judged, strict=False):
        expected = {}
        for verdict in "ABC":
            ids = tokenizer(text)["input_ids"]
            continuation = tokenizer(f"[[{verdict}]]", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids + continuation])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            expected[verdict] = float(logits.gather(1, torch.tensor(continuation)[:, None]).sum())
        assert reply.verdict == max(expected, key=expected.get)
        found = dict(part.split() for part in reply.text.split(", "))
        assert {verdict: float(value) for verdict, value in found.items()} == pytest.approx(expected, abs=1e-3)
    assert too_long.verdict is None
    assert "the context length is 40" in too_long.text
