"""A whole run on a tiny model: the run folder, and a saved model that loads without this package."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm import TaskStream, run
from codyra_llm.adapter import CoDyRALinear
from codyra_llm.config import RunConfig, load_config
from codyra_llm.data.encode import encode_rows
from codyra_llm.evaluation.matrix import matrix_metrics, read_matrix_csv
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.results.schema import RunResults, read_results

pytestmark = pytest.mark.pictures
TASKS = ["FOMC", "NumGLUE-cm", "MeetingBank"]


def tiny_config(model: Path, output: Path, **overrides: object) -> RunConfig:
    return load_config(
        None,
        {
            "model.name_or_path": str(model),
            "output_dir": str(output),
            "order": TASKS,
            "adapter.rank": 4,
            "train.global_batch_size": 8,
            "train.per_device_train_batch_size": 4,
            "train.num_train_epochs": 2,
            "train.learning_rate": 0.01,
            "data.max_test_examples": 5,
            "evaluate.max_new_tokens": 4,
            **overrides,
        },
    )


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    """A run folder and the results that `run` returned."""
    output = tmp_path_factory.mktemp("run") / "out"
    return output, run(tiny_config(tiny_folder, output))


def test_the_run_folder_is_complete(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml",
        "results.json",
        "matrix.csv",
        "matrix.png",
        "report.html",
        "ranks.csv",
        "ranks.png",
        "predictions",
        "tensorboard",
        "train.log",
        "model",
    }
    assert not list(folder.rglob("*.tmp"))
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("matrix.png", "ranks.png"))
    assert list((folder / "tensorboard").iterdir())
    assert load_config(folder / "config.yaml") == tiny_config(Path(results.model.name), folder)
    assert read_results(folder) == results


def test_the_matrix_is_measured_in_full(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    tasks, matrix = read_matrix_csv(folder / "matrix.csv")
    assert tasks == TASKS
    assert matrix.shape == (4, 3)
    assert matrix.tolist() == results.matrices["lenient"]
    for variant in VARIANTS:
        assert results.metrics[variant] == matrix_metrics(results.matrices[variant])
    nll = results.answer_nll
    for i in range(3):
        assert nll[i + 1][i] < nll[0][i] - 0.2, "each task's answers become likelier when it is learned"


def test_every_prediction_is_kept_with_its_scores(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    files = sorted(path.name for path in (folder / "predictions").iterdir())
    assert len(files) == 4 * 3
    assert "0-base.FOMC.jsonl" in files
    rows = [json.loads(line) for line in (folder / "predictions" / "1-FOMC.NumGLUE-cm.jsonl").open()]
    assert len(rows) == 5
    assert set(rows[0]) == {"prompt", "prediction", "reference", "nll", "scores"}
    mean = sum(row["scores"]["lenient"] for row in rows) / 5
    assert mean == pytest.approx(results.matrices["lenient"][1][1])


def test_results_hold_what_a_table_needs(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    assert results.schema_version == 1
    assert results.versions["torch"] == torch.__version__
    assert results.seed == 1234
    assert all(len(task.sha256["train"]) == 64 for task in results.data.tasks)
    phases = [(phase.task, phase.phase) for phase in results.phases]
    assert phases[:3] == [("base", "evaluate"), ("FOMC", "train"), ("FOMC", "prune and merge")]
    assert all(phase.seconds > 0 for phase in results.phases)
    with (folder / "ranks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 14
    for entry in results.ranks:
        of_task = [row for row in rows if row["task"] == entry.task]
        assert entry.mean == pytest.approx(sum(int(row["rank"]) for row in of_task) / 14)
        norm = sum(float(row["update_norm"]) ** 2 for row in of_task) ** 0.5
        assert entry.update_norm == pytest.approx(norm, rel=1e-4)
    assert any(int(row["rank"]) < 4 for row in rows)


def test_the_model_loads_without_this_package_and_answers_alike(
    finished: tuple[Path, RunResults], tiny_folder: Path
) -> None:
    folder, results = finished
    program = f"""
import sys
sys.modules["codyra_llm"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder / "model")!r})
AutoTokenizer.from_pretrained({str(folder / "model")!r})
torch.save((sum(p.numel() for p in model.parameters()), model(torch.arange(3, 60)[None]).logits), sys.argv[1])
"""
    output = folder.parent / "logits.pt"
    subprocess.run([sys.executable, "-c", program, str(output)], check=True, cwd=folder.parent, capture_output=True)
    parameters, logits = torch.load(output)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert parameters == sum(p.numel() for p in base.parameters()) == results.model.parameters
    assert (logits - base(torch.arange(3, 60)[None]).logits).abs().max() > 0.1
    # the saved model is the one that was last evaluated: each answer has the same loss
    saved = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for line in (folder / "predictions" / "3-MeetingBank.FOMC.jsonl").open():
        row = json.loads(line)
        (example,) = encode_rows(tokenizer, [{"prompt": row["prompt"], "answer": row["reference"]}], 1024)
        ids = torch.tensor([example.prompt + example.answer])
        labels = torch.tensor([[-100] * len(example.prompt) + example.answer])
        assert saved(input_ids=ids, labels=labels).loss.item() == pytest.approx(row["nll"], abs=1e-4)


def test_the_card_names_tasks_ranks_and_scores(finished: tuple[Path, RunResults]) -> None:
    card = (finished[0] / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "license" not in front, "nobody states one"
    assert all(task in card for task in TASKS)
    assert "after MeetingBank" in card


def test_started_over_it_comes_to_the_same_result(finished: tuple[Path, RunResults]) -> None:
    folder, first = finished
    second = run(load_config(folder / "config.yaml", {"resume": "never"}))
    assert second.losses == first.losses
    assert second.matrix == first.matrix


def test_lora_at_a_share_of_its_update(tiny_folder: Path, tmp_path: Path) -> None:
    overrides = {"method": "lora", "merge.scale": 0.6, "order": ["FOMC"]}
    results = run(tiny_config(tiny_folder, tmp_path / "lora", **overrides))
    assert results.ranks[0].mean == 4
    whole = run(tiny_config(tiny_folder, tmp_path / "whole", **{**overrides, "merge.scale": 1.0}))
    assert results.ranks[0].update_norm == pytest.approx(0.6 * whole.ranks[0].update_norm)
    assert results.ranks[0].cumulative_norm == pytest.approx(results.ranks[0].update_norm, rel=1e-5)


@pytest.mark.parametrize("tasks", ["seen", "last"])
def test_what_is_not_measured_is_left_empty(tiny_folder: Path, tmp_path: Path, tasks: str) -> None:
    config = tiny_config(tiny_folder, tmp_path / "run", **{"evaluate.tasks": tasks, "order": TASKS[:2]})
    matrix = run(config).matrix
    expected = [[False, False], [tasks == "seen", False], [True, True]]
    assert [[score is not None for score in row] for row in matrix] == expected


def test_a_stream_from_memory_and_a_bf16_base(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(6) for b in range(6)]
    stream = TaskStream.from_rows({"sums": {"train": rows, "test": rows[:4]}})
    config = tiny_config(tiny_folder, tmp_path / "run", **{"model.dtype": "bfloat16"})
    results = run(dataclasses.replace(config, order="sums"), stream)
    assert results.tasks == ["sums"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert saved.dtype == torch.bfloat16


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_leaving_out_what_is_zero_for_good_changes_nothing(stage: int, tiny_folder: Path, tmp_path: Path) -> None:
    deepspeed_json = tmp_path / "zero.json"
    deepspeed_json.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    results, compact = [], CoDyRALinear.compact
    compacted: list[torch.Tensor | None] = []

    def counted(layer: CoDyRALinear) -> None:
        compact(layer)
        compacted.append(layer.alive)

    for every in (0, 1):
        config = tiny_config(
            tiny_folder,
            tmp_path / f"every-{every}",
            **{"adapter.regrow": False, "adapter.compact_every": every, "deepspeed": str(deepspeed_json)},
            **{"adapter.threshold_strength": 3.0, "evaluate.tasks": "last"},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CoDyRALinear, "compact", counted)
            results.append(run(config))
    assert any(alive is not None for alive in compacted)
    ranks = [[entry.mean for entry in result.ranks] for result in results]
    assert ranks[0] == ranks[1]
    assert min(ranks[0]) < 4
    for one, other in zip(results[0].losses, results[1].losses, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
