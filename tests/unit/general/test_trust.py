"""Users' own suites: deterministic few-shot examples, no code unless allowed, no sampling, sandboxed templates."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codyra_llm.config import GeneralConfig
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.lm import BatchedLM
from codyra_llm.evaluation.general.score import score_suite
from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.evaluation.general.suites import Suite, load_suites
from tests.conftest import REPOSITORY
from tests.suites import write_suite

SHOTS = {"training_split": "train", "fewshot_split": "train", "num_fewshot": 3}


def with_examples(folder: Path, **changes: object) -> str:
    """Writes a suite that shows three of forty examples with each item; returns its file."""
    rows = [{"question": f"Train {n}?", "choices": ["it is even", "no"], "answer": n % 2} for n in range(40)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {split: str(folder / file) for split, file in (("test", "items.jsonl"), ("train", "train.jsonl"))}
    return write_suite(folder, **{**SHOTS, "dataset_kwargs": {"data_files": files}, **changes})


def load(file: str, **settings: object) -> Suite:
    (suite,) = load_suites(GeneralConfig(suites=(file,), **settings))
    return suite


class Listener(BatchedLM):
    """Records the prompts of all requests."""

    def __init__(self) -> None:
        super().__init__(None, lambda questions: [], 512)
        self.prompts: list[str] = []

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        self.prompts += [request.args[0] for request in requests]
        return [(-1.0, False) for _ in requests]


def prompts_of(suite: Suite) -> list[str]:
    listener = Listener()
    scores, _ = score_suite(suite, listener)
    assert isinstance(scores, SuiteScore), scores
    return listener.prompts


def failure_of(file: str, **settings: object) -> str:
    """Returns the error of a suite that fails, either while it is loaded or while it is scored."""
    try:
        scores, rows = score_suite(load(file, **settings), Listener())
    except UserError as error:
        return str(error)
    assert not rows
    return scores.failed


def test_the_same_examples_each_time_and_in_each_process(tmp_path: Path) -> None:
    file = with_examples(tmp_path)
    before = random.getstate(), torch.random.get_rng_state()
    suite = load(file)
    first = prompts_of(suite)
    random.random()
    assert prompts_of(suite) == first == prompts_of(load(file))
    assert any("Train" in prompt for prompt in first)
    random.setstate(before[0])
    prompts_of(suite)
    assert random.getstate() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])
    program = (
        "import sys; from tests.unit.general.test_trust import load, prompts_of; print(prompts_of(load(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program, file],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(first)


def test_the_digest_changes_with_what_is_asked_and_shown(tmp_path: Path) -> None:
    file = with_examples(tmp_path)
    digest = load(file).digest
    assert load(file).digest == digest
    for changed in ("items.jsonl", "train.jsonl"):
        text = (tmp_path / changed).read_text()
        (tmp_path / changed).write_text(text.replace("no", "never", 1))
        assert load(file).digest != digest
        (tmp_path / changed).write_text(text)
    assert load(with_examples(tmp_path, doc_to_text="{{question}}!")).digest != digest
    assert load(file, limit=3).digest != digest


def with_code(folder: Path, text: str = "") -> str:
    write_suite(folder)
    content = (folder / "evens.yaml").read_text()
    (folder / "code.py").write_text("import sys\n\n\ndef text(doc):\n    " + (text or "return doc['question']") + "\n")
    (folder / "evens.yaml").write_text(content.replace('"{{question}}"', "!function code.text"))
    return str(folder / "evens.yaml")


def test_code_of_a_suite_runs_only_if_it_is_allowed(tmp_path: Path) -> None:
    file = with_code(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w'); return doc['question']")
    with pytest.raises(UserError, match=r"evens\.yaml: !function runs code .*general\.allow_code"):
        load(file)
    (tmp_path / "outer.yaml").write_text("include: evens.yaml\ntask: outer\n")
    with pytest.raises(UserError, match=r"!function runs code"):
        load(str(tmp_path / "outer.yaml"))
    (tmp_path / "object.yaml").write_text("task: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"python/object/apply:os\.getcwd runs code"):
        load(str(tmp_path / "object.yaml"))
    assert not (tmp_path / "ran").exists()
    prompts_of(load(file, allow_code=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ question.__init__.__globals__ }}"])
def test_templates_reach_nothing_but_their_item(template: str, tmp_path: Path) -> None:
    assert "SecurityError" in failure_of(write_suite(tmp_path, doc_to_text=template))


@pytest.mark.parametrize("status", ["0", "3", "'a word'"])
def test_a_suite_that_exits_has_failed(status: str, tmp_path: Path) -> None:
    file = with_code(tmp_path, f"sys.exit({status})")
    assert "SystemExit" in failure_of(file, allow_code=True)
    late = "sys.exit(0) if doc['question'] == 'Is 7 even?' else doc['question']"
    (tmp_path / "code.py").write_text(f"import sys\n\n\ndef text(doc):\n    return {late}\n")
    assert "SystemExit" in failure_of(file, allow_code=True)


@pytest.mark.parametrize(
    "changes",
    [{"unsafe_code": True}, {"generation_kwargs": {"do_sample": True}}, {"generation_kwargs": {"temperature": 0.7}}],
)
def test_what_runs_or_draws_answers_is_refused_when_it_is_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    if "generation_kwargs" in changes:
        changes = {**changes, "output_type": "generate_until", "doc_to_choice": None}
    with pytest.raises(UserError, match=r"evens (runs code that the model writes|draws its answers at random)"):
        load(write_suite(tmp_path, **changes))
