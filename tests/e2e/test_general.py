"""A run that measures general ability after its tasks: stopped or failing there, measured later, or already cached."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm import run
from codyra_llm.domains.text.domain import Text
from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.general import lm
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.generation.generate import Question, answer_questions
from codyra_llm.ledger.ledger import read_ledger, write_ledger
from codyra_llm.ledger.peft_io import append_adapter
from codyra_llm.results.schema import General, read_results, to_text
from codyra_llm.workflows.finished_run import saved_config
from codyra_llm.workflows.general_ability import measure_later, score_suites
from tests.e2e.conftest import Command
from tests.e2e.test_run import TASKS, tiny_config
from tests.suites import write_suite

pytestmark = pytest.mark.pictures

ROWS = ["0-base", *(f"{n}-{task}" for n, task in enumerate(TASKS, 1))]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, so that no answer is known."""
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of answers given in each round of a measurement."""
    counts: list[int] = []

    def count(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *rest: Any
    ) -> Any:
        *most, on_round, synced = rest

        def counted(fresh: dict[int, Any]) -> None:
            if not questions[0].max_new_tokens:  # a suite's choices
                counts.append(len(fresh))
            on_round(fresh)

        return answer_questions(model, tokenizer, questions, *[*most, counted, synced])

    monkeypatch.setattr(Text, "answer", staticmethod(count))
    return counts


def test_a_run_measures_general_ability_and_can_be_stopped_there(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, asked: list[int]
) -> None:
    suite = write_suite(tmp_path)
    overrides = {"general.suites": [suite], "general.limit": 6, "evaluate.batch_size": 2}
    whole = run(tiny_config(tiny_folder, tmp_path / "whole", **overrides))
    general = whole.general
    base = general.scores["0-base"][suite].score
    assert list(general.scores) == ROWS
    for row, found in general.scores.items():
        assert found[suite].items == 6
        assert general.delta[row] == pytest.approx(found[suite].score - base)
    assert (tmp_path / "whole" / "general.png").stat().st_size > 1000
    assert "general ability: +0.0" in (tmp_path / "whole" / "train.log").read_text()

    per_row = len(asked) // len(ROWS)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "predictions").glob("*.general.*")}
    assert list(kept) and set(kept) == {f"{row}.general.evens.jsonl" for row in ROWS}
    for line in kept["0-base.general.evens.jsonl"].splitlines():
        assert set(json.loads(line)) == {"task", "item", "prompt_sha256", "answers", "target", "score"}

    shutil.rmtree(cache)
    output = tmp_path / "stopped"
    likelihoods = lm.BatchedLM._loglikelihood_tokens

    def stop_first(self: Any, requests: Any, **rest: Any) -> Any:
        if not (output / "stopped").exists() and not list(output.glob("ledger/0*")):
            (output / "stop").touch()
        return likelihoods(self, requests, **rest)

    monkeypatch.setattr(lm.BatchedLM, "_loglikelihood_tokens", stop_first)
    with pytest.raises(Stopped, match=r"while measuring general ability \(general-0-base\), after 6 answers"):
        run(tiny_config(tiny_folder, output, **overrides))  # two rows of three choices each
    monkeypatch.setattr(lm.BatchedLM, "_loglikelihood_tokens", likelihoods)
    asked.clear()
    resumed = run(tiny_config(tiny_folder, output, **overrides))
    assert len(asked) == per_row * len(ROWS) - 1  # the answered round is not repeated
    assert resumed.general == general
    assert read_results(output).general == general
    for name, content in kept.items():
        assert (output / "predictions" / name).read_bytes() == content
    assert not list(output.rglob("*.partial"))


def test_the_base_model_is_measured_once(tiny_folder: Path, tmp_path: Path, asked: list[int], cache: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.limit": 6, "order": TASKS[:1]}
    first = run(tiny_config(tiny_folder, tmp_path / "codyra", **overrides))
    rounds = len(asked)
    second = run(tiny_config(tiny_folder, tmp_path / "lora", method="lora", **overrides))
    assert len(asked) == 1.5 * rounds
    assert "18 answers of this model are known from before" in (tmp_path / "lora" / "train.log").read_text()
    assert second.general.scores["0-base"] == first.general.scores["0-base"]
    name = "predictions/0-base.general.evens.jsonl"
    assert (tmp_path / "lora" / name).read_bytes() == (tmp_path / "codyra" / name).read_bytes()

    for file in cache.glob("answers/*"):
        file.write_text(file.read_text()[:-2])
    again = run(tiny_config(tiny_folder, tmp_path / "again", **overrides))
    assert len(asked) == 2.5 * rounds
    assert again.general == first.general


def test_the_same_weights_are_another_model_by_their_configuration(
    tiny_folder: Path, tmp_path: Path, asked: list[int]
) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.limit": 6}
    rounds = []
    changes: list[dict[str, dict[str, Any]]] = [
        {},
        {},
        {"config": {"rms_norm_eps": 0.1}},
        {"generation_config": {"eos_token_id": [2, 3]}},
    ]
    for number, change in enumerate(changes):
        folder = tmp_path / f"model{number}"
        shutil.copytree(tiny_folder, folder)
        for name, settings in change.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        asked.clear()
        score_suites(tiny_config(folder, tmp_path / f"scores{number}", **overrides))
        rounds.append(len(asked))
    assert rounds[0] > 0
    assert rounds == [rounds[0], 0, rounds[0], rounds[0]]


def test_what_was_appended_to_a_run_s_ledger_is_not_measured_as_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    overrides = {"general.suites": [write_suite(tmp_path)], "general.limit": 6, "order": TASKS[:2]}
    expected = run(tiny_config(tiny_folder, output, **overrides))
    forgotten = dataclasses.replace(expected, general=General(items=expected.general.items))
    (output / "results.json").write_text(to_text(forgotten))
    ledger = output / "ledger"
    append_adapter(ledger, read_ledger(ledger), ledger / f"01-{TASKS[0]}", "mine", None)
    assert measure_later(output, saved_config(output)).general == expected.general
    kept = read_ledger(ledger)
    write_ledger(ledger, dataclasses.replace(kept, entries=kept.entries[:1]))
    with pytest.raises(UserError, match=f"where the run learned {', '.join(TASKS[:2])}"):
        measure_later(output, saved_config(output))


def test_a_suite_that_failed_is_measured_later(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path)
    overrides = {"general.suites": ["text", suite], "general.limit": 4}
    whole = run(tiny_config(tiny_folder, tmp_path / "whole", **overrides))

    def fail(self: Any, requests: Any, **rest: Any) -> NoReturn:
        raise MemoryError("no room\nfor this")

    with monkeypatch.context() as broken:
        broken.setattr(lm.BatchedLM, "_loglikelihood_tokens", fail)
        output = tmp_path / "failing"
        failed = run(tiny_config(tiny_folder, output, **overrides))
    assert failed.matrix == whole.matrix
    for row in ROWS:
        assert failed.general.scores[row][suite] == SuiteFailure("MemoryError: no room")
        assert failed.general.scores[row]["text"] == whole.general.scores[row]["text"]
        assert failed.general.delta[row] is None
    assert "failed" in (output / "train.log").read_text()

    output = output.rename(tmp_path / "elsewhere")
    shutil.rmtree(cache)
    config = saved_config(output)
    some = measure_later(output, config, [TASKS[1]])
    assert [row for row in ROWS if isinstance(some.general.scores[row][suite], SuiteScore)] == [ROWS[0], ROWS[2]]
    later = measure_later(output, config)
    for row in ROWS:
        mine, theirs = (results.general.scores[row][suite] for results in (later, whole))
        assert mine == theirs
        name = f"predictions/{row}.general.evens.jsonl"
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert later.general == whole.general
    assert read_results(output) == later
    assert run(dataclasses.replace(tiny_config(tiny_folder, output, **overrides))).general == later.general
    assert "change" in capsys.readouterr().out

    with pytest.raises(UserError, match="--after nosuch: not a task of this run"):
        measure_later(output, config, ["nosuch"])
    fewer = dataclasses.replace(config, general=dataclasses.replace(config.general, limit=1))
    with pytest.raises(UserError, match=f"--after {TASKS[1]}: text was measured on other items"):
        measure_later(output, fewer, [TASKS[1]])
    other = dataclasses.replace(config, general=dataclasses.replace(config.general, suites=("sample",), limit=3))
    shutil.rmtree(output / "ledger" / f"02-{TASKS[1]}")
    with pytest.raises(UserError, match=f"02-{TASKS[1]}/.* cannot be read"):
        measure_later(output, other)
    (output / "results.json").unlink()
    with pytest.raises(UserError, match="name the folder of a run"):
        measure_later(output, config)


def test_suites_alone_need_no_task_data(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path), "sample"], "general.limit": 5}
    learned = run(tiny_config(tiny_folder, tmp_path / "run", order=TASKS[:1], **overrides))
    config = tiny_config(
        tmp_path / "run" / "model", tmp_path / "scores", data_dir=str(tmp_path / "nowhere"), **overrides
    )
    scores = score_suites(config)
    assert scores.general.scores["model"] == learned.general.scores[f"1-{TASKS[0]}"]
    assert scores.general.items == learned.general.items
    assert (tmp_path / "scores" / "results.json").read_text() == to_text(scores)
    assert {path.name for path in (tmp_path / "scores" / "predictions").iterdir()} == {
        "model.general.evens.jsonl",
        "model.general.sample.jsonl",
    }
    assert score_suites(config).general == scores.general
    of_the_run = tiny_config(tiny_folder, tmp_path / "run", order=TASKS[:1], **overrides)
    with pytest.raises(UserError, match="holds a training run; name another folder for the scores"):
        score_suites(of_the_run)


def test_measured_only_after_the_tasks_that_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.limit": 2, "general.after": [TASKS[-1]]}
    results = run(tiny_config(tiny_folder, tmp_path / "out", **overrides))
    assert list(results.general.scores) == ["0-base", f"{len(TASKS)}-{TASKS[-1]}"]
    with pytest.raises(UserError, match=r"general\.after: nosuch"):
        run(tiny_config(tiny_folder, tmp_path / "bad", **{**overrides, "general.after": ["nosuch"]}))


def test_never_measured_is_no_reason_to_fail(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"general.suites": [write_suite(tmp_path)], "general.after": [TASKS[0]], "evaluate.tasks": "last"}
    results = run(tiny_config(tiny_folder, tmp_path / "out", **overrides))
    assert results.general.scores == {}
    assert (tmp_path / "out" / "model").is_dir()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--run", "x", "--model", "y"], "--run and --model: give one of them"),
        (["--run", "x", "--output_dir", "y"], "--run and --output_dir: give one of them"),
        (["--run", "x", "--output_dir=y"], "--run and --output_dir: give one of them"),
        (["--after", "FOMC"], "--after: goes with --run"),
        (["--tasks"], "--tasks: goes with --run"),
        (["--tasks", "--run", "x", "--suites", "sample"], "--tasks: goes with --run"),
        (["--run", "nowhere"], "name the folder of a finished run"),
    ],
)
def test_options_that_cannot_go_together(options: list[str], line: str, refused: Command) -> None:
    assert line in refused("evaluate.py", *options)
