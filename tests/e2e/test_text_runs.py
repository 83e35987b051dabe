"""Continued pretraining as one of the tasks: bits per byte equal the harness's and fall as the text is learned."""

import json
from pathlib import Path

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm import run
from codyra_llm.data.raw_text import as_bits
from codyra_llm.errors import UserError
from tests.e2e.test_run import tiny_config

TASKS = {
    "tasks": {
        "news": {"scorer": "bits_per_byte", "max_prompt_length": 24, "columns": {"text": "body"}},
        "sums": {"scorer": "accuracy", "max_new_tokens": 4},
    }
}
DOCUMENTS = [f"On day {n} the river rose by {n} inches, and the town of {n} people slept." for n in range(26)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task, key in (("news", "body"), ("sums", "")):
        (tmp_path / "data" / task).mkdir(parents=True)
        for split, numbers in (("train", range(24)), ("test", range(24, 26))):
            rows = [{key: DOCUMENTS[n]} if key else {"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in numbers]
            (tmp_path / "data" / task / f"{split}.json").write_text(json.dumps(rows))
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS))
    return tmp_path


def test_raw_text_among_other_tasks(tiny_folder: Path, folder: Path) -> None:
    own = {"task_file": str(folder / "tasks.yaml"), "data_dir": str(folder / "data"), "order": ["news", "sums"]}
    results = run(tiny_config(tiny_folder, folder / "run", **own))
    assert [(task.scorer, task.train_rows, task.test_rows) for task in results.data.tasks] == [
        ("bits_per_byte", 24, 2),
        ("accuracy", 24, 2),
    ]
    before, after = (results.matrix[stage][0] for stage in (0, 1))
    assert before is not None
    assert after is not None
    assert as_bits(after) < as_bits(before) - 0.1
    for stage, model in ((0, tiny_folder), (2, folder / "run" / "model")):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        theirs = HFLM(AutoModelForCausalLM.from_pretrained(model), tokenizer=tokenizer, max_length=23)
        asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in DOCUMENTS[24:]]
        theirs.add_bos_token = False
        bits = (
            -sum(theirs.loglikelihood_rolling(asked))
            / sum(len(text.encode()) for text in DOCUMENTS[24:])
            / 0.6931471805599453
        )
        score = results.matrix[stage][0]
        assert score is not None
        assert as_bits(score) == pytest.approx(bits, abs=0.02), "its last window reads more than one token"
    assert all(matrix[2][0] == results.matrix[2][0] for matrix in results.matrices.values())
    log = (folder / "run" / "train.log").read_text()
    assert "Bits per byte of raw text" in log
    assert f"{as_bits(after):.3f}" in log
    assert f"{as_bits(after):.3f}" in (folder / "run" / "model" / "README.md").read_text()


def test_raw_text_without_its_scorer_is_named(tiny_folder: Path, folder: Path) -> None:
    (folder / "data" / "sums" / "train.json").write_text(json.dumps([{"text": "Once."}]))
    own = {"task_file": str(folder / "tasks.yaml"), "data_dir": str(folder / "data"), "order": ["sums"]}
    with pytest.raises(
        UserError, match=r"train\.json: holds raw text; say so in the task file by scorer: bits_per_byte"
    ):
        run(tiny_config(tiny_folder, folder / "run", **own))
