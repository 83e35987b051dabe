"""Verdicts in both orders become win, tie or lose; checks and phrases are counted as documented."""

import itertools

import pytest
from scipy.stats import binomtest

from codyra_llm.evaluation.judge.checks import Checks, passed
from codyra_llm.evaluation.judge.prompts import Prompt
from codyra_llm.evaluation.judge.proxies import CheckCounts, is_refusal, proxies, refusal_phrases
from codyra_llm.evaluation.judge.verdict import Pair, fill, read_verdict, tally, wilson
from codyra_llm.generation.generate import Answered


def test_both_orders_must_agree() -> None:
    outcomes = {verdicts: Pair(False, verdicts).outcome for verdicts in itertools.product("ABC", repeat=2)}
    assert outcomes.pop(("A", "B")) == "win"
    assert outcomes.pop(("B", "A")) == "lose"
    assert set(outcomes.values()) == {"tie"}
    assert Pair(False, ("A", None)).outcome is None
    assert Pair(True).outcome == "tie"


def test_tally() -> None:
    pairs = [
        *[Pair(False, ("A", "B"))] * 5,
        *[Pair(False, ("B", "A"))] * 2,
        *[Pair(False, ("A", "A"))] * 2,
        Pair(False, ("C", "C")),
        *[Pair(True)] * 2,
        Pair(False, (None, "A")),
    ]
    found = tally(pairs)
    assert (found.win, found.tie, found.lose, found.identical, found.unjudged) == (5, 5, 2, 2, 1)
    assert found.net == pytest.approx(100 * 3 / 12)
    scores = [1] * 5 + [-1] * 2 + [0] * 5
    variance = sum((score - 0.25) ** 2 for score in scores) / 11
    assert found.net_stderr == pytest.approx(100 * (variance / 12) ** 0.5)
    assert found.order_decides_percent == pytest.approx(20)
    assert found.win_interval == wilson(5, 12)


def test_nothing_judged_has_no_shares() -> None:
    found = tally([Pair(False, (None, None))])
    assert found.unjudged == 1
    shares = (found.net, found.win_percent, found.win_interval, found.order_decides_percent)
    assert shares == (None, None, None, None)


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (3, 7), (7, 7), (40, 300)])
def test_interval_is_wilsons(hits: int, total: int) -> None:
    interval = binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson(hits, total) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-4)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[B]]", "B"),
        ("Not [[A]], as it is rude. My verdict: [[C]]", "C"),
        ("B", "B"),
        (" **A**.\n", "A"),
        ("A good answer.", None),
        ("bananas", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_reading_a_verdict(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


def test_what_answers_hold_is_not_taken_for_a_slot() -> None:
    assert (
        fill("{prompt}|{answer_a}|{answer_b}|{x}", "{answer_b}", r"\1{prompt}", "b") == r"{answer_b}|\1{prompt}|b|{x}"
    )


@pytest.mark.parametrize(
    ("check", "wanted", "right", "wrong"),
    [
        ("max_words", 3, "one two three", "one two three four"),
        ("min_words", 2, "one\ntwo", "one"),
        ("json", True, '```json\n{"a": [1]}\n```', '{"a": 1'),
        ("must_include", ["Rank", "two words"], "a rank, and two words", "a rank"),
        ("must_exclude", ["never"], "always", "Never!"),
        ("starts_with", "Dear", "\n Dear all", "dear all"),
        ("ends_with", "Bye.", "Well. Bye. \n", "Bye. Well."),
        ("bullets", 2, "Two:\n- one\n  * two\n**bold**", "- one\n- two\n- three"),
        ("bullets", 0, "--- none -", "- one"),
    ],
)
def test_checks(check: str, wanted: object, right: str, wrong: str) -> None:
    checks = Checks(**{check: wanted})
    assert passed(checks, right) == {check: True}
    assert passed(checks, wrong) == {check: False}


def test_proxies_of_answers() -> None:
    prompts = [
        Prompt("p", "1", None, Checks(max_words=4, starts_with="I"), "here"),
        Prompt("q", "2", None, Checks(), "here"),
        Prompt("r", "3", None, Checks(min_words=1), "here"),
    ]
    answers = [
        Answered("I’m sorry, but no way!", 7, 0.0, False),
        Answered("Here you are.", 4, 0.0, False),
        Answered("Yes", 1, 0.0, False),
    ]
    found = proxies(prompts, answers)
    assert (found.refusal_rate, found.mean_words, found.mean_tokens) == pytest.approx((100 / 3, 9 / 3, 4))
    assert found.checks == CheckCounts(3, pytest.approx(200 / 3), 50)
    assert proxies(prompts[1:2], answers[1:2]).checks == CheckCounts(0, None, None)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I cannot help with that.", True),
        ("As an AI, I have no body.", True),
        ("I CAN'T.", True),
        ("Cannons were cast of bronze.", False),
        ("", False),
    ],
)
def test_refusals(answer: str, refused: bool) -> None:
    assert is_refusal(answer, refusal_phrases()) is refused
