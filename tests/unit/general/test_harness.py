"""General ability: the same numbers as the harness's own class; deterministic subsets; errors that name bad suites."""

import dataclasses
import functools
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import GeneralConfig
from codyra_llm.data.chat import find_chat_template
from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.general.lm import BatchedLM
from codyra_llm.evaluation.general.score import score_suite
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore, general_delta
from codyra_llm.evaluation.general.suites import SHIPPED, TRACE, load_suites
from codyra_llm.generation.generate import Answered, Question, answer_questions
from codyra_llm.models.load import load_model
from codyra_llm.models.source import resolve_model
from tests.suites import write_suite

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(NAME).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(resolve_model(NAME))


@pytest.fixture(scope="module")
def ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BatchedLM:
    return BatchedLM(tokenizer, lambda questions: answer_questions(model, tokenizer, questions, 8), 2048)


@pytest.fixture(scope="module")
def theirs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=2048)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, 0) for each in arguments]


def test_choices_are_as_likely_as_the_harness_finds_them(ours: BatchedLM, theirs: HFLM) -> None:
    shots = "".join(f"Question: what is {n} plus {n}?\nAnswer: {2 * n}\n\n" for n in range(12))
    asked = requests(
        "loglikelihood",
        *((f"{shots}Question: what is {n} plus 1?\nAnswer:", f" {said}") for n in range(5) for said in (n + 1, "none")),
        ("", "A text without a context"),
        ("The capital of France is ", "Paris, of course"),
    )
    for (mine, greedy), (loglikelihood, is_greedy) in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True
    ):
        assert mine == pytest.approx(loglikelihood, abs=1e-3)
        assert greedy == is_greedy


def test_whole_texts_are_as_likely_as_the_harness_finds_them(
    ours: BatchedLM, theirs: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests("loglikelihood_rolling", ("One two three four five. " * 12,), ("Short.",))
    monkeypatch.setattr(ours, "max_length", 32)
    monkeypatch.setattr(theirs, "_max_length", 32)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-2)


def test_answers_are_those_the_harness_gets(ours: BatchedLM, theirs: HFLM) -> None:
    until = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    asked = requests(
        "generate_until", *((text, until) for text in ("The sky is", "One, two, three,", "Question: who?\nAnswer:"))
    )
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_in_a_chat_template_it_is_asked_as_the_harness_asks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, theirs: HFLM, tmp_path: Path
) -> None:
    """Equals `lm_eval --apply_chat_template --fewshot_as_multiturn`, with few-shot examples and both answer types."""
    template = find_chat_template(tokenizer, "auto")
    ask = functools.partial(answer_questions, model, tokenizer, batch_size=8)
    ours = BatchedLM(tokenizer, ask, 2048, template)
    (suite,) = load_suites(
        GeneralConfig(suites=(write_suite(tmp_path, num_fewshot=2, fewshot_split="test", description="Be exact."),))
    )
    mine, answers = score_suite(suite, ours, in_turns=True)
    their_score, their_answers = score_suite(suite, theirs, in_turns=True)
    assert mine == their_score
    _, plain = score_suite(suite, ours)
    for answer, other, without in zip(answers, their_answers, plain, strict=True):
        assert answer["prompt_sha256"] == other["prompt_sha256"] != without["prompt_sha256"]
        assert [nats for nats, _ in answer["answers"]] == pytest.approx([n for n, _ in other["answers"]], abs=1e-3)


def test_a_suite_of_ones_own(ours: BatchedLM, theirs: HFLM, tmp_path: Path) -> None:
    (suite,) = load_suites(GeneralConfig(suites=(write_suite(tmp_path),)))
    mine, answers = score_suite(suite, ours)
    their_score, their_answers = score_suite(suite, theirs)
    assert mine == their_score
    found = evaluate(theirs, {"tasks": suite.tasks, "groups": {}, "group_map": {}})["results"]["evens"]
    assert (mine.score, mine.stderr) == pytest.approx((100 * found["acc,none"], 100 * found["acc_stderr,none"]))
    assert mine.stderr > 0
    assert (mine.unit, mine.metric, mine.items) == ("percent", "acc", 8)
    for number, (answer, other) in enumerate(zip(answers, their_answers, strict=True)):
        assert answer["item"] == number
        assert answer["prompt_sha256"] == other["prompt_sha256"]
        assert [nats for nats, _ in answer["answers"]] == pytest.approx([n for n, _ in other["answers"]], abs=1e-3)
    assert sum(answer["score"] for answer in answers) / 8 == pytest.approx(mine.score / 100)


def test_perplexity_of_a_text_is_the_harness_s_and_no_score(ours: BatchedLM, theirs: HFLM) -> None:
    (suite,) = load_suites(GeneralConfig(suites=("text",), limit=2))
    mine, answers = score_suite(suite, ours)
    assert mine.score == pytest.approx(score_suite(suite, theirs)[0].score, abs=1e-4)
    assert 0.5 < mine.score < 2
    assert (mine.unit, mine.higher_is_better, mine.stderr) == ("bits_per_byte", False, None)
    assert len(answers) == mine.items == 2
    assert general_delta({"text": mine}, {"text": mine}) is None


def test_a_score_that_is_no_number_is_a_failure(ours: BatchedLM) -> None:
    (suite,) = load_suites(GeneralConfig(suites=("text",), limit=2))
    broken = BatchedLM(ours.tokenizer, lambda asked: [Answered("", 0, math.nan, False) for _ in asked], 2048)
    assert score_suite(suite, broken) == (SuiteFailure("ValueError: its score is nan"), [])


def test_tasks_that_a_limit_leaves_out_are_not_asked(ours: BatchedLM) -> None:
    (suite,) = load_suites(GeneralConfig(suites=("sample",), limit=1))
    score, answers = score_suite(suite, ours)
    assert score.items == len(answers) == 1
    assert score.stderr is None


def test_generated_answers_are_kept_as_they_were_given(ours: BatchedLM, tmp_path: Path) -> None:
    generates = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_text": "One, two, three,",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {"name": "word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match"}],
    }
    (suite,) = load_suites(GeneralConfig(suites=(write_suite(tmp_path, **generates),), limit=3))
    score, answers = score_suite(suite, ours)
    assert score.metric == "exact_match"
    assert any(answer["answers"][0].strip() for answer in answers)
    for answer in answers:
        assert answer["filtered"] == (re.findall(r"\w+", answer["answers"][0]) or ["[invalid]"])[:1]
        assert answer["target"] == "it is even"


def test_a_suite_that_mixes_units_fails_and_says_so(ours: BatchedLM) -> None:
    (choice,), (text,) = (load_suites(GeneralConfig(suites=(name,), limit=1)) for name in ("sample_choice", "text"))
    both = dataclasses.replace(choice, tasks=choice.tasks | text.tasks, items=choice.items | text.items)
    assert "measured in bits_per_byte and percent" in score_suite(both, ours)[0].failed


def test_a_limit_leaves_the_same_items_every_time(tmp_path: Path) -> None:
    def items(limit: int | None) -> list[int]:
        (suite,) = load_suites(GeneralConfig(suites=(write_suite(tmp_path),), limit=limit))
        return suite.items["evens"]

    assert items(3) == items(3)
    assert len(items(3)) == 3
    assert set(items(3)) < set(items(5)) < set(items(None))


def test_strata_share_a_limit(tmp_path: Path) -> None:
    folder = tmp_path / "mmlu"
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True)
        for subject in ("algebra", "botany", "chess"):
            lines = [f"{subject} {number}?,a,b,c,d,{number % 4}" for number in range(7)]
            (folder / split / f"{subject}_{split}.csv").write_text(
                "\n".join(["question,choice0,choice1,choice2,choice3,answer", *lines])
            )
    (suite,) = load_suites(GeneralConfig(suites=("mmlu",), data_dir=str(tmp_path), limit=6))
    chosen = [suite.tasks["general_mmlu"].eval_docs[i] for i in suite.items["general_mmlu"]]
    assert [item["stratum"] for item in chosen] == ["algebra"] * 2 + ["botany"] * 2 + ["chess"] * 2
    assert all(item["shots"].count("Answer:") == 5 and item["stratum"] in item["shots"] for item in chosen)


@pytest.mark.parametrize(
    ("suite", "data_dir", "named"),
    [
        ("no_such_suite", None, 'unknown suite "no_such_suite"'),
        ("missing.yaml", None, "missing.yaml: no such file"),
        ("mmlu", "nowhere", "general.data_dir nowhere: no such folder"),
        ("mmlu", ".", "mmlu cannot be loaded.*mmlu/dev: holds no"),
        ("gsm8k", ".", "gsm8k cannot be loaded.*gsm8k/train.jsonl"),
        ("bbh", ".", "bbh cannot be loaded.*bbh/bbh: holds no"),
        ("tydiqa", ".", "tydiqa cannot be loaded.*tydiqa-goldp: holds no"),
        ("boolq", ".", "boolq cannot be loaded.*boolq/dev.jsonl"),
        ("piqa", ".", "piqa cannot be loaded.*piqa/valid-labels.lst"),
    ],
)
def test_a_suite_that_cannot_be_read_is_named(suite: str, data_dir: str | None, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_suites(GeneralConfig(suites=(suite,), data_dir=data_dir))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["task: [unclosed", "", "- a list", "task: t\noutput_type: nonsense", "task: t\noutput_type: multiple_choice"],
)
def test_a_malformed_suite_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml") as caught:
        load_suites(GeneralConfig(suites=(str(tmp_path / "bad.yaml"),)))
    assert "\n" not in str(caught.value)


def test_a_suite_named_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="sample is listed 2 times"):
        load_suites(GeneralConfig(suites=("sample", "sample")))


def test_worked_examples_of_bbh_are_the_authors_own(general_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("general_data", SHIPPED / "data.py")
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    hub = {name: shots for name, shots in data.bbh_shots()}
    local = {path.stem: path.read_text() for path in (general_data / "bbh" / "cot-prompts").glob("*.txt")}
    assert hub.keys() == local.keys()
    same = [
        name
        for name, text in local.items()
        if "".join(text.split("-----", 1)[-1].split()) == "".join(hub[name].split())
    ]
    assert sorted(same) == sorted(local)


def test_the_six_suites_are_asked_as_trace_does(general_data: Path) -> None:
    suites = load_suites(GeneralConfig(suites=("general",), data_dir=str(general_data), limit=6))
    assert [suite.name for suite in suites] == list(TRACE)
    shots = {"mmlu": ("\nAnswer:", 6), "gsm8k": ("\nAnswer:", 9), "bbh": ("Let's think step by step.", 4),
             "tydiqa": ("\nA:", 2), "boolq": ("\nAnswer:", 1), "piqa": ("\nAnswer:", 1)}  # fmt: skip
    for suite in suites:
        ((name, task),) = suite.tasks.items()
        mark, times = shots[suite.name]
        for number in suite.items[name]:
            prompt = task.doc_to_text(task.eval_docs[number])
            assert prompt.count(mark) == times, (suite.name, prompt)
            assert prompt.endswith(mark)


def test_a_suite_that_fails_is_reported_and_a_stop_goes_through(ours: BatchedLM, tmp_path: Path) -> None:
    def fail(questions: Sequence[Question]) -> NoReturn:
        raise ZeroDivisionError("of one")

    def cannot_keep(questions: Sequence[Question]) -> NoReturn:
        raise UserError("the disk is full")

    def stop(questions: Sequence[Question]) -> NoReturn:
        raise Stopped("now")

    (suite,) = load_suites(GeneralConfig(suites=(write_suite(tmp_path),)))
    assert score_suite(suite, BatchedLM(ours.tokenizer, fail, 2048)) == (SuiteFailure("ZeroDivisionError: of one"), [])
    with pytest.raises(UserError, match="disk is full"):
        score_suite(suite, BatchedLM(ours.tokenizer, cannot_keep, 2048))
    with pytest.raises(Stopped):
        score_suite(suite, BatchedLM(ours.tokenizer, stop, 2048))


def test_the_change_counts_suites_that_both_have() -> None:
    def found(score: float, unit: str = "percent") -> SuiteScore:
        return SuiteScore(score, None, unit, unit == "percent", "acc", 4)

    base = {"a": found(50.0), "b": found(20.0), "c": SuiteFailure("why"), "text": found(1.0, "bits_per_byte")}
    after = {"a": found(46.0), "b": found(22.0), "c": found(90.0), "text": found(3.0, "bits_per_byte")}
    assert general_delta(after, base) == pytest.approx(-1.0)
    assert general_delta(after, {}) is None
