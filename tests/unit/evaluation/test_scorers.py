"""Scorers compared with the published code row by row, and properties that hold for any text."""

import logging
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import SCORERS, VARIANTS, score_rows

PUBLISHED = ("trace_strict", "treelora_prefix", "moram")
TASK_SCORERS = {
    "C-STANCE": "choice",
    "FOMC": "choice",
    "MeetingBank": "rouge_l",
    "Py150": "edit_similarity",
    "ScienceQA": "choice_explained",
    "NumGLUE-cm": "numeric",
    "NumGLUE-ds": "numeric",
    "20Minuten": "sari",
}
# the package's value without the recursion limit, for the argument order and newline of each variant
UNLIMITED_ROUGE = {
    "trace_strict": "hyp_is_reference_no_recursion_limit",
    "treelora_prefix": "hyp_is_reference_newline_added_no_recursion_limit",
    "moram": "hyp_is_prediction_newline_added_no_recursion_limit",
}
TRICKY = [
    "", " ", ".", "...", ". . .", "\n", "\n.", "A", "a", "b", "A B", "选A，", "A\nall", "N", "1,536", "1,5", "-9",
    "10-208", "1/2", "1/0", "1 3/4", "0010", "50%", "boxed", "\\boxed{}", "\\boxed{7", "\\boxed{\\frac12}",
    "\\boxed{1/0}", "=", "x=", "x=x=", "１９", "²", "٣", "1e999", "1e-999", "nan", "inf", "-", "seventeen",
    "twenty-one", "<NUM_LIT>", "<STR_LIT:<NUM_LIT:5>>", "<EOL>", "<skipped>", "&quot;", "-\n", "\x00", "\ud83d",
    "1" * 5000, "(" * 500, "\\boxed{" + "-" * 3000 + "1}", "a " * 1500,
]  # fmt: skip
# short texts of the characters that the scorers treat specially, and arbitrary text
TEXTS = st.one_of(
    st.sampled_from(TRICKY),
    st.text(alphabet="ABCa b.,:=-/%$\\{}()<>_0123\n答案：boxed", max_size=30),
    st.text(st.characters(), max_size=60),
)


def score(scorer: str, variant: str, prediction: str, reference: str, prompt: str = "") -> float:
    row = {"prompt": prompt, "prediction": prediction, "reference": reference}
    return score_rows(scorer, [row])["rows"][0][variant]


def expected_percent(scorer: str, variant: str, row: dict[str, Any]) -> float:
    """Returns the recorded headline score, or the row's correct score where the published `eval` crashed on it."""
    recorded = row["scores"][variant]
    if recorded["headline_percent"] is not None:
        return recorded["headline_percent"]
    functions = recorded["functions"]
    if scorer == "sari":
        return functions["sari"][0]["sari"]
    if scorer == "choice_explained":
        return 100 * functions.get("accuracy", 0.0)
    if functions["rouge-L"] == {"error": "RecursionError"}:
        return 100 * row["scores"]["components"]["rouge_1.0.1"][UNLIMITED_ROUGE[variant]]["f"]
    return 0.0


@pytest.mark.parametrize("task", TASK_SCORERS)
def test_every_row_scores_as_published(scored_rows: Callable[[str], dict[str, Any]], task: str) -> None:
    data = scored_rows(task)
    scorer = TASK_SCORERS[task]
    result = score_rows(scorer, data["rows"])
    wrong = [
        (row["id"], row["kind"], variant, scores[variant])
        for row, scores in zip(data["rows"], result["rows"], strict=True)
        for variant in PUBLISHED
        if scores[variant] != pytest.approx(expected_percent(scorer, variant, row), abs=1e-4)
    ]
    assert not wrong


@pytest.mark.parametrize("task", TASK_SCORERS)
def test_totals_are_means_over_all_rows(scored_rows: Callable[[str], dict[str, Any]], task: str) -> None:
    data = scored_rows(task)
    result = score_rows(TASK_SCORERS[task], data["rows"])
    assert result["n"] == len(data["rows"]) == data["n_rows"]
    for variant in PUBLISHED:
        recorded = data["aggregate"][variant]["headline_percent_all_rows"]
        mean = sum(expected_percent(TASK_SCORERS[task], variant, row) for row in data["rows"]) / len(data["rows"])
        assert result["totals"][variant] == pytest.approx(mean if recorded is None else recorded, abs=1e-4)


@pytest.mark.parametrize(("task", "start"), [("ScienceQA", 2), ("20Minuten", 0)])
def test_rouge_of_the_other_text_tasks(scored_rows: Callable[[str], dict[str, Any]], task: str, start: int) -> None:
    rows = scored_rows(task)["rows"]
    cut = [{key: row[key][start:] for key in ("prompt", "prediction", "reference")} for row in rows]
    compared = 0
    for row, scores in zip(rows, score_rows("rouge_l", cut)["rows"], strict=True):
        recorded = row["scores"]["components"]["rouge_1.0.1"]
        for variant, key in UNLIMITED_ROUGE.items():
            if recorded.get(key) and "f" in recorded[key]:
                assert scores[variant] == pytest.approx(100 * recorded[key]["f"], abs=1e-4), (row["id"], variant)
                compared += 1
    assert compared > 90


def test_a_row_the_published_code_crashes_on_scores_zero_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = score_rows("rouge_l", [{"prompt": "", "prediction": ".", "reference": "A motion."}])
    assert result["rows"][0]["trace_strict"] == 0
    (record,) = caplog.records
    assert "row 0" in record.message
    assert "trace_strict" in record.message
    assert "ValueError" in record.message


def test_empty_first_character_is_a_crash_in_trace_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = score_rows("choice_explained", [{"prompt": "", "prediction": "", "reference": "A\nwhy"}])["rows"]
    assert rows == [dict.fromkeys(VARIANTS, 0.0)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("scorer", "variant", "prediction", "reference", "right"),
    [
        ("accuracy", "trace_strict", "yes ", "yes", False),
        ("accuracy", "treelora_prefix", " yes, it is", "yes", True),
        ("accuracy", "moram", " yes, it is", "yes", True),
        ("accuracy", "treelora_prefix", "ye", "yes", False),
        ("accuracy", "treelora_prefix", "A", "A\n", False),
        ("accuracy", "trace_strict", "", "", False),
        ("accuracy", "lenient", " YES\n", "yes", True),
        ("choice", "moram", "so it is b", "B", True),
        ("choice", "moram", "a clear case of B", "B", False),
        ("numeric", "moram", r"\boxed{5+7}", "12", True),
        ("numeric", "moram", r"\boxed{12/4}", "12/4", True),
        ("numeric", "moram", r"\boxed{[12]}", "12", True),
        ("numeric", "moram", r"\boxed{1,536}", "1536", True),
        ("numeric", "moram", "1,536", "1536", False),
        ("numeric", "moram", "", "", True),
        ("numeric", "moram", "(August)", "August", True),
        ("numeric", "moram", "x=August", "August", True),
        ("numeric", "moram", "9**9**9**9", "3", False),
        ("choice", "lenient", "Answer: (b) because A is wrong", "B", True),
        ("choice", "lenient", "我认为应该选A，理由如下", "A", True),
        ("choice", "lenient", "回答：C", "C", True),
        ("choice", "lenient", "This is A clear case, so B", "B", True),
        ("choice", "lenient", "Because the text says so", "B", False),
        ("choice", "lenient", "I think it is C", "C", True),
        ("choice_explained", "lenient", "A\nall of it melts", "A\nBecause", True),
        ("choice_explained", "lenient", "D", "A\nBecause", False),
        ("numeric", "lenient", "1,536 km", "1536", True),
        ("numeric", "lenient", "$2,50", "2.5", True),
        ("numeric", "lenient", "1 3/4", "1.75", True),
        ("numeric", "lenient", r"\boxed{\frac{1}{4}}", "0.25", True),
        ("numeric", "lenient", "25%", "0.25", True),
        ("numeric", "lenient", "25%", "25", True),
        ("numeric", "lenient", "2500", "25", False),
        ("numeric", "lenient", "twenty-one", "21", True),
        ("numeric", "lenient", "5 + 7 = 12", "12", True),
        ("numeric", "lenient", "The answer is 180 because there are 3", "180", True),
        ("numeric", "lenient", "5500\n\nQuestion:\nHow many?\nAnswer: 4", "5500", True),
        ("numeric", "lenient", "-9", "9", False),
        ("numeric", "lenient", "0010", "10", True),
        ("numeric", "lenient", "The answer is august.", "August", True),
        ("numeric", "lenient", "Augustus", "August", False),
        ("edit_similarity", "lenient", "x = <NUM_LIT:5> <EOL> y = 3", "x = 5", True),
        ("rouge_l", "lenient", "DIE ÄRZTE", "Die Ärzte.", True),
    ],
)  # fmt: skip
def test_single_answers(scorer: str, variant: str, prediction: str, reference: str, right: bool) -> None:
    prompt = "Choose one: A. dovish, B. hawkish, C. neutral."
    assert score(scorer, variant, prediction, reference, prompt) == 100.0 * right


def test_lenient_sari_leaves_the_instruction_out() -> None:
    paragraph, answer = "Der Hund lief in den Wald.", "Der Hund lief."
    prompt = f"Provide a simplified version of it.\n\nParagraph:\n{paragraph}\n\nSimplification:"
    assert score("sari", "lenient", answer, answer, prompt) == score("sari", "trace_strict", answer, answer, paragraph)
    assert score("sari", "lenient", "Wald", answer, prompt) != score("sari", "trace_strict", "Wald", answer, prompt)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scorer", SCORERS)
def test_long_texts_are_fast_and_do_not_recurse(scorer: str) -> None:
    words = [f"w{index % 300}" for index in range(1000)]
    row = {"prompt": "", "prediction": " ".join(words), "reference": " ".join(reversed(words))}
    score_rows(scorer, [row])


@pytest.mark.parametrize("scorer", SCORERS)
def test_tricky_pairs_stay_in_range(scorer: str) -> None:
    short = [text for text in TRICKY if len(text) < 100]
    pairs = [*product(short, short), *((long, "A") for long in TRICKY), *(("A", long) for long in TRICKY)]
    rows = [{"prompt": p + r, "prediction": p, "reference": r} for p, r in pairs]
    logging.disable(logging.WARNING)
    try:
        result = score_rows(scorer, rows)
    finally:
        logging.disable(logging.NOTSET)
    wrong = [(p, r, s) for (p, r), s in zip(pairs, result["rows"], strict=True) if not in_range(s)]
    assert not wrong


def in_range(scores: dict[str, float]) -> bool:
    return set(scores) == set(VARIANTS) and all(0 <= percent <= 100 for percent in scores.values())


@pytest.mark.parametrize("scorer", SCORERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=TEXTS, prediction=TEXTS, reference=TEXTS)
def test_any_text_scores_between_0_and_100(scorer: str, prompt: str, prediction: str, reference: str) -> None:
    row = {"prompt": prompt, "prediction": prediction, "reference": reference}
    assert in_range(score_rows(scorer, [row])["rows"][0])


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name != "sari"])
@settings(max_examples=60, deadline=None)
@given(reference=TEXTS)
def test_the_reference_itself_is_right_when_lenient(scorer: str, reference: str) -> None:
    assert score(scorer, "lenient", reference, reference) == pytest.approx(100)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, reference=TEXTS)
def test_the_reference_itself_keeps_and_adds_what_it_should(prompt: str, reference: str) -> None:
    # the deletion part can be below 100 even so, if one copy of a word of the source is kept and another is deleted
    assert score("sari", "lenient", reference, reference, prompt) >= 200 / 3 - 1e-9


def test_unknown_scorer_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r'unknown scorer "bleurt".*choice_explained'):
        score_rows("bleurt", [])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        score_rows("choice", [])
