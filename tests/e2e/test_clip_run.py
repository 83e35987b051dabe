"""A whole run on a tiny CLIP: the run folder, a bit-identical resume, and a model that loads without this package."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from codyra_llm import run
from codyra_llm.config import RunConfig, to_yaml
from codyra_llm.errors import Stopped
from codyra_llm.evaluation.matrix import matrix_metrics
from codyra_llm.models.load import load_model
from codyra_llm.models.source import check_clip, open_source
from codyra_llm.report.reporter import Reporter
from codyra_llm.results.schema import RunResults, read_results
from codyra_llm.workflows.evaluate import score_model
from tests.clip import COLORS, clip_run, color_domain, color_stream, save_clip
from tests.e2e.conftest import Command

TASKS = ["warm", "cold"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    """A run folder and the results that `run` returned."""
    output = tmp_path_factory.mktemp("run") / "out"
    return output, run(clip_run(model, output, tracking=["tensorboard"]), color_stream(12))


def test_the_matrix_in_both_label_spaces(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    assert read_results(folder) == results
    assert results.data.domain == "images"
    assert list(results.matrices) == ["union", "within_task"]
    assert results.matrix == results.matrices["union"]
    for variant, matrix in results.matrices.items():
        assert [len(row) for row in matrix] == [2, 2, 2]
        assert results.metrics[variant] == matrix_metrics(matrix)
    for whole, own in zip(
        *([each for row in matrix for each in row] for matrix in results.matrices.values()), strict=True
    ):
        assert whole is not None and own is not None and whole <= own, "who is right among all is among the task's own"
    assert results.answer_nll[1][0] < results.answer_nll[0][0]
    assert set(results.ranks[0].by_projection) == {
        f"{tower}.{kind}"
        for tower in ("vision", "text")
        for kind in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    }


def test_what_is_written_says_images(finished: tuple[Path, RunResults]) -> None:
    folder, _ = finished
    log, page = (folder / "train.log").read_text(), (folder / "report.html").read_text()
    assert "zero-shot, union: warm " in log
    table = log[log.index("As the benchmarks report it") :].splitlines()
    assert table[1].split() == ["Transfer", "(MTIL)", "Average", "(MTIL)", "Last", "(MTIL)"]
    assert [line.split()[0] for line in table[2:4]] == ["union", "within_task"]
    assert "Transfer (MTIL)" in page
    assert "score, union" in page
    card = (folder / "model" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert "CLIPProcessor" in card
    assert "nats per image" in card
    adapter = json.loads((folder / "ledger" / "01-warm" / "adapter_config.json").read_text())
    assert adapter["task_type"] is None


def test_every_prediction_is_kept_with_its_scores(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    rows = [json.loads(line) for line in (folder / "predictions" / "2-cold.warm.jsonl").open()]
    assert len(rows) == 15
    assert set(rows[0]) == {"prompt", "prediction", "reference", "nll", "scores"}
    for row in rows:
        assert (row["prediction"] == row["reference"]) == (row["scores"]["union"] == 100)
        assert row["prediction"] in COLORS["warm"] or row["prediction"].removesuffix(" (cold)") in COLORS["cold"]
    assert sum(row["scores"]["within_task"] for row in rows) / 15 == pytest.approx(
        results.matrices["within_task"][2][0]
    )


def test_the_model_loads_without_this_package_and_tells_the_same(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    own, processor = CLIPModel.from_pretrained(folder / "model"), CLIPProcessor.from_pretrained(folder / "model")
    domains = [color_domain(name) for name in TASKS]
    prompts = [prompt for domain in domains for prompt in domain.prompts]
    right = []
    for picture in domains[1].test:
        assert isinstance(picture.source, numpy.ndarray)
        inputs = processor(text=prompts, images=Image.fromarray(picture.source), padding=True, return_tensors="pt")
        with torch.no_grad():
            found: Any = own(**inputs)
        right.append(int(found.logits_per_image.argmax()) == 3 + picture.label)
    assert 100 * sum(right) / len(right) == pytest.approx(results.matrix[2][1], abs=5.1)  # one picture of 20 may differ


def stop_at(step: int, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(self: Reporter, report: object, global_step: int, progress: object) -> None:
        if global_step == step:
            (Path(config.output_dir) / "stop").touch()

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Reporter, "step", act)
        run(config, color_stream(12))


@pytest.mark.parametrize("step", [5, 17])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    finished: tuple[Path, RunResults], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = clip_run(model, tmp_path / "run", tracking=["tensorboard"])
    stop_at(step, config, monkeypatch)
    results = run(config, color_stream(12))
    folder, whole = finished
    assert len(results.sessions) == 1
    assert results.losses == whole.losses
    assert results.matrices == whole.matrices
    assert results.answer_nll == whole.answer_nll
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "run", folder))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "seqlora"},
        {"method": "pruned"},
        {"method": "mean"},
        {"method": "ties"},
        {"method": "magmax"},
        {"adapter.threshold_mode": "budget"},
        {"adapter.threshold_mode": "reference", "adapter.ramp_levels": 3, "adapter.threshold_strength": 0.1},
        {"merge.scale": 0.5},
        {"method": "replay", "replay.fraction": 0.5},
        {"method": "lora", "train.validation": 0.25, "train.validate_every": 3, "train.keep_best": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_methods_and_modes(model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    results = run(clip_run(model, tmp_path / "run", **settings, **{"evaluate.tasks": "last"}), color_stream(6))
    assert results.finished
    for losses in results.losses:
        assert losses.loss[-1] < losses.loss[0]
        assert [found.step for found in losses.validation] == ([3, 6] if "train.validation" in settings else [])
    assert [task.replayed_rows for task in results.data.tasks] == ([0, 6] if "replay.fraction" in settings else [0, 0])
    assert all(set(task.sha256) >= {"train", "test", "classes"} for task in results.data.tasks)


def test_the_ledger_makes_the_same_model(
    finished: tuple[Path, RunResults], command: Command, model: Path, tmp_path: Path
) -> None:
    folder, _ = finished
    command("materialize.py", "--ledger", folder / "ledger", "--output_dir", tmp_path / "made")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "made", folder / "model"))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert (tmp_path / "made" / "preprocessor_config.json").exists()
    load_model(open_source(str(tmp_path / "made"), check=check_clip))


TASK_FILE = """
name: colors
domain: images
tasks:
  warm: {reader: folders, template: "a {} photo.", shots: 4, steps: 12}
  cold: {reader: folders, template: "a {} photo.", shots: 4, steps: 12}
published:
  - {method: zero-shot, measure: zero_shot, variant: union, scores: {warm: 99.0, cold: 0.0}, source: a test}
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, object]:
    """Writes a task file and folders of pictures; settings that name them."""
    for name in TASKS:
        domain = color_domain(name)
        for split, pictures in (("train", domain.train), ("test", domain.test)):
            for number, picture in enumerate(pictures):
                path = tmp_path / "data" / name / split / domain.classes[picture.label] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert isinstance(picture.source, numpy.ndarray)
                Image.fromarray(picture.source).save(path)
    (tmp_path / "colors.yaml").write_text(TASK_FILE)
    return {"task_file": str(tmp_path / "colors.yaml"), "data_dir": str(tmp_path / "data")}


def test_a_run_from_files(model: Path, tmp_path: Path, files: dict[str, object], command: Command) -> None:
    config = clip_run(model, tmp_path / "run", **files)
    results = run(config)
    assert results.data.stream == "colors version 1"
    assert [task.steps for task in results.data.tasks] == [12, 12]
    assert "published 99.0: pictures, class names, prompts or weights" in (tmp_path / "run" / "train.log").read_text()
    scores = score_model(clip_run(model, tmp_path / "scores", **files))
    assert scores.scores["union"] == dict(zip(TASKS, results.matrices["union"][0], strict=True))
    saved = tmp_path / "saved"
    command("evaluate.py", "--model", tmp_path / "run" / "model", "--output_dir", saved)
    scores_of_saved = json.loads((saved / "results.json").read_text())["scores"]["within_task"]
    assert scores_of_saved == dict(zip(TASKS, results.matrices["within_task"][-1], strict=True))
    again = tmp_path / "again"
    command("evaluate.py", "--run", tmp_path / "run", "--tasks", "--output_dir", again)
    assert read_results(again).matrices == results.matrices


def test_data_outside_of_the_stream_is_told_zero_shot(
    model: Path, tmp_path: Path, files: dict[str, object], command: Command
) -> None:
    """Scores before the stream and after each task, as for general ability; and later, for a finished run."""
    only = {"order": ["warm"], "train.steps": 4, **files}
    config = clip_run(model, tmp_path / "run", **only, **{"general.suites": ["cold"], "general.limit": 12})
    results = run(config)
    assert results.tasks == ["warm"]
    (numbers,) = results.general.items["cold"].values()
    assert len(numbers) == 12 and numbers == sorted(numbers)
    base, after = (results.general.scores[stage]["cold"] for stage in ("0-base", "1-warm"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "1-warm.general.cold.jsonl").open()]
    assert [row["item"] for row in rows] == numbers
    assert after.score == pytest.approx(sum(row["score"] for row in rows) / 12)
    assert all(row["prediction"] in COLORS["cold"] for row in rows), "told among its own classes alone"
    assert results.general.delta["1-warm"] == pytest.approx(after.score - base.score)
    log, page = (tmp_path / "run" / "train.log").read_text(), (tmp_path / "run" / "report.html").read_text()
    assert "general ability: cold" in log and "cold" in page
    plain = run(clip_run(model, tmp_path / "plain", **only))
    assert plain.losses == results.losses, "what is told beside a run does not change it"
    later = ("--run", tmp_path / "plain", "--suites", "cold", "--general.limit", 12)
    command("evaluate.py", *later)
    assert read_results(tmp_path / "plain").general == results.general
    alone = ("--model", tmp_path / "run" / "model", "--suites", "cold", "--output_dir", tmp_path / "alone")
    command("evaluate.py", *alone)
    saved = json.loads((tmp_path / "alone" / "results.json").read_text())["general"]
    assert saved["items"] == results.general.items
    assert saved["scores"]["model"]["cold"]["score"] == after.score, "as the run's last row"


def test_a_learning_rate_is_chosen_on_pictures_carved_from_train(
    model: Path, tmp_path: Path, files: dict[str, object], command: Command
) -> None:
    config = clip_run(model, tmp_path / "grid", **files, **{"train.steps": 3, "order": ["warm"]})
    content = {**yaml.safe_load(to_yaml(config)), "compare": {"methods": ["lora"], "seeds": [1], "orders": ["warm"]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    command("compare.py", "--config", tmp_path / "grid.yaml", "--sweep", "learning_rate=0.00001,0.01")
    sweep = json.loads((tmp_path / "grid" / "sweep.json").read_text())
    assert sweep["chosen"] == {"lora": {"train.learning_rate": 0.01}}
    carved = read_results(tmp_path / "grid" / "sweep" / "lora" / "learning_rate=0.01").data.tasks[0]
    assert (carved.train_rows, carved.test_rows) == (10, 2)
    whole = read_results(tmp_path / "grid" / "lora" / "warm-seed1")
    assert (whole.data.tasks[0].train_rows, whole.data.tasks[0].test_rows) == (12, 15)
    assert whole.config["train"]["learning_rate"] == 0.01


def test_a_dry_run_shows_a_picture_and_its_prompt(
    model: Path, tmp_path: Path, files: dict[str, object], command: Command
) -> None:
    given = {**files, "model.name_or_path": model, "output_dir": tmp_path / "run", "adapter.target_modules": "auto"}
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    printed = command("train_trace.py", *arguments, "--train.global_batch_size", 8, "--dry_run")
    assert "task  classes  pictures  steps  test pictures" in printed
    assert ">>a orange photo.<<" in printed or ">>a red photo.<<" in printed or ">>a yellow photo.<<" in printed


def test_a_comparison_has_what_the_benchmarks_report(
    model: Path, tmp_path: Path, files: dict[str, object], command: Command
) -> None:
    config = clip_run(model, tmp_path / "grid", **files, **{"train.steps": 4})
    content = {
        **yaml.safe_load(to_yaml(config)),
        "compare": {"methods": ["lora", "codyra"], "seeds": [1], "line": "lora"},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    command("compare.py", "--config", tmp_path / "grid.yaml")
    found = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert [each["name"] for each in found["contestants"]] == ["lora", "codyra"]
    for each in found["contestants"]:
        assert each["mean"]["last"] == pytest.approx(each["mean"]["OP"])
        assert each["mean"]["transfer"] is not None
        assert each["mean"]["flops"] is None
    assert "Transfer" in (tmp_path / "grid" / "comparison.md").read_text()


@pytest.mark.parametrize("which", ["seen", "last"])
def test_a_run_that_does_not_score_the_base_model(which: str, model: Path, tmp_path: Path) -> None:
    config = clip_run(model, tmp_path / "run", method="lora", **{"evaluate.tasks": which})
    results = run(config, color_stream(2))
    assert results.matrix[0] == [None, None]
    assert all(score is not None for score in results.matrix[-1])


def test_a_ledger_is_extended_by_other_domains(model: Path, tmp_path: Path) -> None:
    one = run(clip_run(model, tmp_path / "one", order=["warm"]), color_stream(6, ("warm",)))
    both = clip_run(model, tmp_path / "both", extend=str(tmp_path / "one" / "ledger"))
    two = run(both, color_stream(6, ("cold",)))
    assert two.matrices["within_task"][0] != [None]
    assert one.finished and two.finished
    assert [path.name for path in sorted((tmp_path / "both" / "ledger").glob("0*"))] == ["01-warm", "02-cold"]


def test_the_built_in_model_and_its_stream(tmp_path: Path, command: Command) -> None:
    how = {"order": "land,textures", "train.steps": 4, "data.max_test_examples": 16, "tracking": "[]"}
    how |= {"general.suites": "digits"}
    arguments = [part for name, value in how.items() for part in (f"--{name}", value)]
    command("train_trace.py", "--config", "quickstart_clip", "--output_dir", tmp_path / "run", *arguments)
    results = read_results(tmp_path / "run")
    assert results.tasks == ["land", "textures"]
    assert list(results.general.scores) == ["0-base", "1-land", "2-textures"]
    assert results.general.scores["0-base"]["digits"].score > 15, (
        "of 200 and 10 classes: told by sight, though not learned"
    )
    assert sum(results.matrices["within_task"][0]) > 40, "it has seen such pictures, though not by class"
    CLIPModel.from_pretrained(tmp_path / "run" / "model")


def test_commands_of_language_models_refuse_it(model: Path, tmp_path: Path, refused: Command) -> None:
    line = "CLIPModel is not a causal language model; use one like LlamaForCausalLM, or, to train and score"
    assert line in refused("plan.py", "--model", model, "--gpu-memory", "24GB")
    assert line in refused("evaluate.py", "--model", model, "--suites", "piqa", "--output_dir", tmp_path / "out")
    assert line in refused("train_trace.py", "--model.name_or_path", model, "--output_dir", tmp_path / "out")


def test_commands_of_language_models_refuse_its_tasks(model: Path, tmp_path: Path, refused: Command) -> None:
    plan = refused("plan.py", "--config", "quickstart_clip", "--gpu-memory", "24GB")
    assert plan == (
        "error: task_file tasks/shapes/shapes.yaml: is one of images, which are not planned; codyra train --dry_run "
        "says what a run has to do"
    )
    assert "is one of images" in refused("plan.py", "--config", "quickstart_clip", "--model", "google/gemma-2-9b",
                                         "--gpu-memory", "24GB")  # fmt: skip
    run(clip_run(model, tmp_path / "run", task_file="tasks/shapes/shapes.yaml"), color_stream(2, ("warm",)))
    assert "no suite is named; --suites takes general, mmlu" in refused("evaluate.py", "--run", tmp_path / "run")
