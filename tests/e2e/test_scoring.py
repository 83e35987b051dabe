"""Scoring a saved model gives the last scores of its run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm import run
from codyra_llm.config import RunConfig, load_config
from codyra_llm.errors import Stopped, UserError
from codyra_llm.generation import generate
from codyra_llm.generation.generate import Question
from codyra_llm.results.schema import to_text
from codyra_llm.workflows.evaluate import score_model
from codyra_llm.workflows.general_ability import score_suites
from tests.suites import write_suite


def overrides(model: Path, output: Path) -> dict[str, Any]:
    return {
        "model.name_or_path": str(model),
        "output_dir": str(output),
        "order": ["FOMC", "NumGLUE-cm"],
        "adapter.rank": 4,
        "train.global_batch_size": 8,
        "train.num_train_epochs": 1,
        "data.max_train_examples": 16,
        "data.max_test_examples": 5,
        "evaluate.max_new_tokens": 4,
    }


def config_of(model: Path, output: Path) -> RunConfig:
    return load_config(None, overrides(model, output))


def all_files(folder: Path) -> dict[Path, int]:
    """Returns the modification time of every file of a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_scores_as_its_run_measured(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))
    trained = run(config_of(tiny_folder, tmp_path / "run"))
    left = all_files(tmp_path / "run")
    with pytest.raises(UserError, match="holds a training run; name another folder for the scores"):
        score_model(config_of(tiny_folder, tmp_path / "run"))
    assert all_files(tmp_path / "run") == left
    suites = {"general.suites": [write_suite(tmp_path)], "general.limit": 4}
    results = score_model(load_config(None, overrides(tmp_path / "run" / "model", tmp_path / "scores") | suites))
    alone = score_suites(load_config(None, overrides(tmp_path / "run" / "model", tmp_path / "alone") | suites))
    assert results.general == alone.general
    for variant, matrix in trained.matrices.items():
        assert list(results.scores[variant].values()) == matrix[-1]
        assert results.mean[variant] == pytest.approx(sum(matrix[-1]) / 2)
    assert list(results.answer_nll.values()) == pytest.approx(trained.answer_nll[-1], abs=1e-5)
    assert (tmp_path / "scores" / "results.json").read_text() == to_text(results)
    for task in ("FOMC", "NumGLUE-cm"):
        ours, theirs = (
            [json.loads(line)["prediction"] for line in path.open()]
            for path in (
                tmp_path / "scores" / "predictions" / f"model.{task}.jsonl",
                tmp_path / "run" / "predictions" / f"2-NumGLUE-cm.{task}.jsonl",
            )
        )
        assert ours == theirs
    assert f"mean{results.mean['trace_strict']:.1f}" in capsys.readouterr().out.replace(" ", "")


def test_scoring_that_was_stopped_goes_on(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    answer_batch = generate._answer_batch

    def counted(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *rest: Any
    ) -> Any:
        batches.append(len(questions))
        if len(batches) == 1:
            (tmp_path / "scores" / "stop").touch()
        return answer_batch(model, tokenizer, questions, *rest)

    monkeypatch.setattr(generate, "_answer_batch", counted)
    config = load_config(None, {**overrides(tiny_folder, tmp_path / "scores"), "evaluate.batch_size": 4})
    with pytest.raises(Stopped, match="after 4 of 10 answers"):
        score_model(config)
    assert (tmp_path / "scores" / "stopped").exists()
    results = score_model(config)
    assert batches == [4, 4, 2]
    assert not (tmp_path / "scores" / "stopped").exists()
    again = score_model(load_config(None, {**overrides(tiny_folder, tmp_path / "again"), "evaluate.batch_size": 4}))
    assert results.answer_nll == again.answer_nll


def test_no_training_rows_are_needed_to_score(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "sums").mkdir(parents=True)
    (tmp_path / "data" / "sums" / "test.json").write_text('[{"prompt": "1 + 1?", "answer": "2"}]')
    (tmp_path / "tasks.yaml").write_text("tasks: {sums: {scorer: accuracy, max_new_tokens: 2}}")
    own = {"task_file": str(tmp_path / "tasks.yaml"), "data_dir": str(tmp_path / "data")}
    settings = {"model.name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "scores")}
    results = score_model(load_config(None, {**own, **settings, "train.validation": "eval"}))
    (facts,) = results.data.tasks
    assert (facts.train_rows, facts.test_rows, facts.steps) == (0, 1, 0)
    assert list(results.scores["lenient"]) == ["sums"]
