"""Problems found before any weight is loaded: ids beyond the vocabulary, names that are too long, text that is lost."""

import copy
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from codyra_llm.data.stream import TaskStream
from codyra_llm.distributed.ranks import start
from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import SCORERS, score_rows
from codyra_llm.planning.run_plan import RunPlan, plan_run
from tests.e2e.test_run import tiny_config
from tests.suites import write_suite

ROWS = [{"prompt": f"Question {n}?", "answer": word} for n, word in enumerate(["red", "blue", "so", "it"] * 4)]


def plan_of(model: Path, stream: TaskStream, **overrides: object) -> RunPlan:
    return plan_run(tiny_config(model, Path("/nowhere"), **{"train.num_train_epochs": 1, **overrides}), start(), stream)


def stream_of(name: str = "one", **splits: list[Any]) -> TaskStream:
    return TaskStream.from_rows({name: {"train": ROWS, "test": ROWS[:4], **splits}})


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_that_the_embedding_does_not_have(split: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_folder), [{"prompt": "a", "answer": "e"} for _ in ROWS]

    def largest_id(text: str) -> int:
        return max(tokenizer(text)["input_ids"])

    rows[2]["answer"] = max("~|^{}\\", "Zürich", "quiz", "*_*", key=largest_id)
    largest = largest_id(rows[2]["answer"])
    assert largest > max(largest_id("a"), largest_id("e"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": largest}))
    expected = rf"task one {split} row 3: token {largest} \(.*\) is not among the {largest} of the model's vocabulary"
    with pytest.raises(UserError, match=expected):
        plan_of(tmp_path / "model", stream_of(**{"train": rows[:2] * 8, "test": rows[:2], split: rows}))


def test_names_that_file_systems_do_not_take(tiny_folder: Path) -> None:
    plan_of(tiny_folder, stream_of("n" * 115))
    with pytest.raises(UserError, match=r"task 'n+.*a file of the run would have a name of 25\d bytes"):
        plan_of(tiny_folder, stream_of("n" * 122))
    with pytest.raises(UserError, match="bytes"):
        plan_of(tiny_folder, stream_of("\u00e9" * 100))


def test_a_task_and_a_suite_do_not_share_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    suites = {"general.suites": [write_suite(tmp_path)], "general.limit": 2}
    plan_of(tiny_folder, stream_of("evens"), **suites)
    with pytest.raises(UserError, match=r"task general\.evens: the answers of a suite are in files of that name"):
        plan_of(tiny_folder, stream_of("general.evens"), **suites)


def test_answers_that_do_not_come_back_are_counted(
    tiny_folder: Path, tmp_path: Path, tokenizers_by_family: dict[str, PreTrainedTokenizerFast]
) -> None:
    tokenizer = copy.deepcopy(tokenizers_by_family["byte-bpe"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    shutil.copytree(tiny_folder, tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(tmp_path / "model")
    test = [{"prompt": "?", "answer": unicodedata.normalize("NFD", "Gr\u00fcn")}, *ROWS[:3]]
    notes = plan_of(tmp_path / "model", stream_of(test=test)).notes
    assert any(
        "task one: 1 of 4 test answers are not what the tokenizer gives back ('Gru\\u0308n'" in each for each in notes
    )
    assert not plan_of(tiny_folder, stream_of()).notes


def test_marks_that_a_text_spells_are_counted(tiny_folder: Path) -> None:
    rows = [{"prompt": f"<s>{row['prompt']}", "answer": f"{row['answer']}</s>"} for row in ROWS]
    notes = plan_of(tiny_folder, stream_of(train=rows)).notes
    assert "task one: 16 of 16 prompts spell the BOS token, so they have it twice" in notes
    assert "task one: 16 of 16 answers spell the EOS token, so they have it twice" in notes


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name not in ("choice", "choice_explained", "numeric")])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_right_answer_in_another_unicode_form_is_right(scorer: str, forms: tuple[str, str]) -> None:
    text = "Gr\u00fcne B\u00e4ume stehen sch\u00f6n da"
    prediction, reference = (unicodedata.normalize(form, text) for form in forms)
    same, other = (
        score_rows(scorer, [{"prompt": "p", "prediction": said, "reference": reference}])["totals"]
        for said in (reference, prediction)
    )
    assert other["lenient"] == same["lenient"]
    assert scorer != "accuracy" or (other["trace_strict"], other["lenient"]) == (0, 100)


def test_compatibility_forms_are_the_same_text() -> None:
    row = {"prompt": "p", "prediction": "\ufb01ve \uff21", "reference": "five A"}
    assert score_rows("accuracy", [row])["totals"]["lenient"] == 100
