"""scripts/plan.py: a plan for every known model without a network, the steps of a real run, one line for bad input."""

import json
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from codyra_llm.config import load_config
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.models.architectures import known_models
from codyra_llm.planning.run_plan import plan_run
from tests.conftest import REPOSITORY

Command = Callable[..., None]
LLAMA_2 = ["--config", str(REPOSITORY / "configs/trace500_llama2_7b.yaml"), "--gpu-memory", "80GB"]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Function that runs the command in an empty folder and fails if it uses the network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command itself sets it; restored after the test
        monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
        runpy.run_path(str(REPOSITORY / "scripts" / "plan.py"), run_name="__main__")

    return command


def planned(plan: Command, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    plan(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


# one known model of each architecture and of each way to share embeddings and key-value heads
KINDS = [
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.2-1B",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-pt",
    "google/gemma-3-4b-pt",
]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_known_model_is_planned_without_a_network(
    plan: Command, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    result = planned(plan, capsys, "--model", name, *LLAMA_2, "--gpus", "8", "--order", "FOMC")
    shape = known_models()[name]
    assert result["micro_batch"] * result["accumulation"] * 8 == 32
    assert result["workload"]["length"] == 1024 + 512
    assert len(result["projections"]) == 7 * shape["num_hidden_layers"]
    assert [way["name"] for way in result["ways"] if way["fits"]], "each of them trains on eight GPUs of 80 GB"
    by_way = {(way["name"], way["checkpointing"]): way["memory"] for way in result["ways"]}
    assert by_way["zero0", False]["weights"] == 2 * result["parameters"]
    assert by_way["zero3", True]["peak"] < by_way["zero3", False]["peak"]
    assert by_way["zero3-offload", True]["peak"] < by_way["zero3", True]["peak"]


def test_the_report_says_all_and_ends_with_a_command(plan: Command, capsys: pytest.CaptureFixture[str]) -> None:
    name = "meta-llama/Llama-2-7b-chat-hf"
    plan("--model", name, *LLAMA_2, "--gpus", "8", "--rows", "500")
    text = capsys.readouterr().out
    assert "6,738,415,616 parameters in bfloat16" in text
    # A and B of rank 16 on each projection, and 16 gates
    assert f"{32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008) + 7):,} values" in text
    assert "4096 tokens a row, 512 of them answer" in text
    assert "data not found: data/LLM-CL-Benchmark_500; --rows 500 for each task" in text
    assert "C-STANCE 31, FOMC 15, MeetingBank 46, Py150 31, ScienceQA 15, NumGLUE-cm 31" in text
    assert text.rstrip().endswith("--deepspeed null --model.gradient_checkpointing false")


def test_times_are_said_where_ceilings_are_given(plan: Command, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "meta-llama/Llama-3.2-1B", *LLAMA_2, "--gpus", "8", "--order", "FOMC,C-STANCE"]
    arguments += ["--rows", "640", "--ceilings", "h100"]
    plan(*arguments, "--test-rows", "100", "--general.suites", "general", "--general.limit", "10")
    text = capsys.readouterr().out
    assert "seconds per step" in text
    assert "(base model)" in text
    assert "NVIDIA H100 SXM data sheet" in text
    assert "?" not in text
    result = planned(plan, capsys, *arguments)
    assert [task["task"] for task in result["time"]["tasks"]] == ["", "FOMC", "C-STANCE"]
    assert result["time"]["tasks"][1]["training"] == pytest.approx(20 * result["ways"][0]["time"]["total"])
    assert result["time"]["tasks"][1]["evaluation"] is None, "how many test rows there are is not known"


def test_steps_and_lengths_are_a_runs_own_where_its_data_is(
    plan: Command, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    smoke = str(REPOSITORY / "configs/smoke.yaml")
    result = planned(plan, capsys, "--model", str(tiny_folder), "--config", smoke, "--gpus", "2", "--gpu-memory", "1GB")
    run = plan_run(load_config(smoke, {"model.name_or_path": str(tiny_folder)}), Ranks(0, 2, torch.device("cpu")))
    assert result["workload"]["steps"] == {batches.task: batches.total_steps for batches in run.batches}
    longest = max(len(example) for batches in run.batches for example in batches.examples)
    assert result["workload"]["length"] == longest


def test_a_model_of_another_kind_is_refused(plan: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit):
        plan("--model", str(tmp_path / "bert"), *LLAMA_2, "--gpus", "8")
    assert "BertForMaskedLM is not a causal language model" in capsys.readouterr().err


def test_what_does_not_fit_is_said(plan: Command, capsys: pytest.CaptureFixture[str]) -> None:
    plan("--model", "google/gemma-2b", "--config", LLAMA_2[1], "--gpus", "1", "--gpu-memory", "2GB", "--order", "FOMC")
    assert "Nothing fits on 1 x 2.00 GB" in capsys.readouterr().out


def test_places_that_stay_empty_are_said(plan: Command, capsys: pytest.CaptureFixture[str]) -> None:
    plan(*LLAMA_2, "--gpus", "3", "--train.per_device_train_batch_size", "4")
    expected = "global batch: 32 rows and 4 empty places = 3 GPUs x 4 rows x 3 micro batches"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such-model", *LLAMA_2, "--gpus", "8"], "model no/such-model: unknown model"),
        (["--model", "no/such-model", *LLAMA_2, "--gpus", "8"], "google/gemma-2b-it"),
        ([*LLAMA_2[:2], "--gpus", "8", "--gpu-memory", "80XB"], '"80XB" is not a size of memory; give one like 80GB'),
        ([*LLAMA_2, "--gpus", "0"], "--gpus is 0; it must be at least 1"),
        ([*LLAMA_2, "--gpus", "many"], "--gpus: invalid int value: 'many'"),
        ([*LLAMA_2, "--gpus", "8", "--ceilings", "h900"], "give one of a100, h100, h200, a selfcheck.json"),
        ([*LLAMA_2, "--gpus", "8", "--test-rows", "0"], "--test-rows is 0; it must be at least 1"),
        ([*LLAMA_2, "--gpus", "8", "--rows", "0"], "--rows is 0; it must be at least 1"),
        ([*LLAMA_2, "--gpus", "8", "--rows", "20"], "FOMC: 20 rows x 1 epochs do not fill one global batch of 32"),
        ([*LLAMA_2, "--gpus", "8", "--adapter.rnak", "8"], "unrecognized arguments: --adapter.rnak"),
        ([*LLAMA_2, "--gpus", "8", "--adapter.rank", "9999"], "adapter: rank is 9999, but model.layers.0"),
    ],
)
def test_bad_input_is_one_line(
    plan: Command, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        plan(*arguments)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_without_a_number_of_gpus_there_is_a_table(plan: Command, capsys: pytest.CaptureFixture[str]) -> None:
    plan(*LLAMA_2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == [*"12345678"]
    for row in (rows[0], rows[2], rows[7]):
        (alone,) = [way for way in planned(plan, capsys, *LLAMA_2, "--gpus", row[0])["ways"] if way["fits"]][:1]
        assert row[3] == alone["name"]
