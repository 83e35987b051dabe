"""Scorers for any task: F1, BLEU, chrF, JSON, and users' own functions."""

from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import VARIANTS, check_scorer, score_rows


def score(scorer: str, prediction: str, reference: str) -> float:
    """Returns the score of one answer; asserts that it is the same in every variant."""
    found = score_rows(scorer, [{"prompt": "", "prediction": prediction, "reference": reference}])["totals"]
    assert len({found[variant] for variant in VARIANTS}) == 1
    return float(found["lenient"])


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", 100),
        ("the cat sat", "a dog sat", 50),
        ("cat cat cat", "cat", 50),
        ("", "", 100),
        ("the", "a", 100),
        ("", "cat", 0),
        ("Saint Bernadette Soubirous", "Bernadette", 50),
    ],
)
def test_f1_is_that_of_squad(prediction: str, reference: str, f1: float) -> None:
    assert score("f1", prediction, reference) == pytest.approx(f1)


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlaps_are_percent_and_of_a_text_with_itself_whole(one: str, other: str) -> None:
    for scorer in ("f1", "bleu", "chrf", "json"):
        assert 0 <= score(scorer, one, other) <= 100
    words = "the quick brown fox " + "jumps"
    assert score("bleu", words, words) == pytest.approx(100) == score("chrf", words, words)


def test_n_grams_are_sacrebleus() -> None:
    prediction, reference = "the cat sat on the mat today", "the cat is on the mat"
    assert score("bleu", prediction, reference) == sacrebleu.sentence_bleu(prediction, [reference]).score
    assert score("chrf", prediction, reference) == sacrebleu.sentence_chrf(prediction, [reference]).score


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ('{"b": [1, 2], "a": null}', '{"a": null, "b": [1, 2]}', True),
        ('```json\n{"a": 1}\n```', '{"a": 1}', True),
        ('{"a": 2}', '{"a": 1}', False),
        ('{"a": 1} and more', '{"a": 1}', False),
        ('{"a": 1}', "an object", True),
        ("", "an object", False),
        ("[" * 100_000, "[]", False),
    ],
)
def test_json(prediction: str, reference: str, right: bool) -> None:
    assert score("json", prediction, reference) == 100.0 * right


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scores.py").write_text(
        "def length(prompt, prediction, reference):\n    return min(100, len(prediction))\n"
        "def wrong(prompt, prediction, reference):\n    return 101\n"
        "def broken(prompt, prediction, reference):\n    return prediction['x']\n"
        "number = 3\n"
    )
    with pytest.raises(UserError, match=r"my_scores:length is code of its own; read it, and set data.allow_code true"):
        check_scorer("my_scores:length", False, "data.allow_code true")
    check_scorer("my_scores:length", True, "")
    assert score("my_scores:length", "four", "x") == 4
    for name, problem in [
        ("my_scores:wrong", "gave 101.0; a score is percent"),
        ("my_scores:broken", "failed on an answer: TypeError"),
        ("my_scores:absent", "cannot be imported: AttributeError"),
        ("my_scores:number", "is no function"),
        ("no_module:x", "cannot be imported: ModuleNotFoundError"),
        ("accurcy", 'unknown scorer "accurcy"; there are accuracy, '),
    ]:
        with pytest.raises(UserError, match=problem):
            score(name, "four", "x")


@pytest.mark.parametrize(
    ("pattern", "prediction", "reference", "right"),
    [
        (r"answer is (\d+)", "So the answer is 12.", "12", True),
        (r"answer is (\d+)", "So the answer is 12.", "1", False),
        (r"^\w+", "Paris, of course", "Paris", True),
        (r"answer is (\d+)", "I do not know", "12", False),
        (r"(x)|y", "y", "y", False),
    ],
)
def test_a_pattern_finds_the_answer(pattern: str, prediction: str, reference: str, right: bool) -> None:
    assert score(f"regex:{pattern}", prediction, reference) == 100 * right
    check_scorer(f"regex:{pattern}", False, "")


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(UserError, match=r"scorer regex:\(: not a regular expression"):
        check_scorer("regex:(", False, "")


def test_the_best_of_several_references_counts() -> None:
    row = {"prompt": "", "prediction": "the cat", "reference": "dog", "references": ["dog", "a cat", "cat food"]}
    assert score_rows("f1", [row])["totals"]["lenient"] == 100
    assert score_rows("accuracy", [{**row, "references": ["cat", "the cat"]}])["totals"]["lenient"] == 100
