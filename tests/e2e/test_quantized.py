"""A whole run on a quantized base: the saved model, a resume, and loading with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.data.encode import encode_rows
from codyra_llm.engine.zero import add_delta
from codyra_llm.ledger.entry import summed
from codyra_llm.models.load import load_model, original_weights
from codyra_llm.models.quantize import quantization_config
from codyra_llm.results.schema import RunResults
from codyra_llm.workflows.evaluate import score_model
from tests.comparison import assert_same_files
from tests.e2e.conftest import Command
from tests.e2e.test_checkpoints import config_of, stop_in_task_2

WAYS = [("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32")]


def quantized_config(model: Path, output: Path, quantization: str, dtype: str, **overrides: object) -> RunConfig:
    return config_of(model, output, **{"model.quantization": quantization, "model.dtype": dtype, **overrides})


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def finished(
    request: pytest.FixtureRequest, wide_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, str], Path, RunResults]:
    folder = tmp_path_factory.mktemp("run") / "out"
    return request.param, folder, run(quantized_config(wide_folder, folder, *request.param))


def merged(base: Path, ledger: Path) -> torch.nn.Module:
    """Returns the original model plus all updates of a ledger, in fp32."""
    model, original = load_model(str(base)), original_weights(str(base))
    for name, factors in summed(sorted(path for path in ledger.iterdir() if path.is_dir())):
        add_delta(model.get_submodule(name), *factors, original(f"{name}.weight"))
    return model


def test_something_is_learned(finished: tuple[Any, ...], wide_folder: Path) -> None:
    _, _, results = finished
    nll = results.answer_nll
    for i in range(2):
        assert nll[i + 1][i] < nll[0][i] - 0.2
    assert results.model.parameters == sum(p.numel() for p in load_model(str(wide_folder)).parameters())


def test_the_saved_model_is_the_sum_quantized_once(
    finished: tuple[Any, ...], wide_folder: Path, tmp_path: Path
) -> None:
    (quantization, dtype), folder, _ = finished
    merged(wide_folder, folder / "ledger").save_pretrained(tmp_path / "sum")
    config = quantization_config(quantization, getattr(torch, dtype))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "sum", quantization_config=config).state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for name, tensor in expected.items():
        if "proj" in name and "quant_state" not in name:  # it contains the dtype before quantization
            assert torch.equal(saved[name], tensor), name


def test_the_saved_model_is_the_one_that_was_measured(finished: tuple[Any, ...]) -> None:
    _, folder, _ = finished
    saved = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for line in (folder / "predictions" / "2-NumGLUE-cm.FOMC.jsonl").open():
        row = json.loads(line)
        (example,) = encode_rows(tokenizer, [{"prompt": row["prompt"], "answer": row["reference"]}], 1024)
        ids = torch.tensor([example.prompt + example.answer])
        labels = torch.tensor([[-100] * len(example.prompt) + example.answer])
        loss = saved(input_ids=ids, labels=labels).loss.item()
        assert loss == pytest.approx(row["nll"], abs=1e-4 if saved.dtype == torch.float32 else 0.05)


def test_it_can_be_scored_as_it_is(finished: tuple[Any, ...], tmp_path: Path) -> None:
    (_, dtype), folder, results = finished
    config = config_of(folder / "model", tmp_path / "scores", **{"model.dtype": dtype})
    scored = score_model(config)
    assert list(scored.answer_nll.values()) == pytest.approx(results.answer_nll[2], abs=1e-3)
    assert scored.model.parameters == results.model.parameters


def test_stopped_and_gone_on_with_it_comes_to_the_same_bits(
    finished: tuple[Any, ...], wide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, folder, results = finished
    config = quantized_config(wide_folder, tmp_path / "run", *way)
    stop_in_task_2(config, monkeypatch)
    again = run(config)
    assert again.losses == results.losses
    assert again.answer_nll == results.answer_nll
    files = [path / "model" / "model.safetensors" for path in (folder, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_base_and_ledger_give_the_files_that_were_saved(
    finished: tuple[Any, ...], tmp_path: Path, command: Command
) -> None:
    (quantization, _), folder, _ = finished
    made = ("materialize.py", "--ledger", folder / "ledger", "--output_dir", tmp_path / "again")
    command(*made, "--quantize", quantization)
    assert_same_files(tmp_path / "again", folder / "model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_in_full_precision_it_is_the_sum_rounded_once(
    wide_folder: Path, tmp_path: Path, command: Command, dtype: str
) -> None:
    overrides = {"merge.save_quantized": False, "evaluate.tasks": "last"}
    run(quantized_config(wide_folder, tmp_path / "run", "nf4", dtype, **overrides))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert saved.dtype == getattr(torch, dtype)
    assert not hasattr(saved.config, "quantization_config")
    expected = merged(wide_folder, tmp_path / "run" / "ledger").state_dict()
    assert all(torch.equal(weight, expected[name].to(weight.dtype)) for name, weight in saved.state_dict().items())
    command("materialize.py", "--ledger", tmp_path / "run" / "ledger", "--output_dir", tmp_path / "again")
    assert_same_files(tmp_path / "again", tmp_path / "run" / "model")
