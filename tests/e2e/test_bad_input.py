"""Bad input ends the command with one line that says what is wrong and where, status 2, and nothing written."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig

from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.errors import UserError
from tests.conftest import REPOSITORY, SAMPLE

Command = Callable[..., str]


@pytest.fixture
def fails(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Function that runs train_trace with arguments that must fail; returns the one line."""

    def command(*arguments: str) -> str:
        output = tmp_path / "output"
        common = [
            "--config",
            "configs/quickstart.yaml",
            "--model.name_or_path",
            str(tiny_folder),
            "--output_dir",
            str(output),
            "--order",
            "FOMC",
        ]
        monkeypatch.setattr(sys, "argv", ["train_trace.py", *common, "--adapter.rank", "4", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(REPOSITORY / "scripts" / "train_trace.py"), run_name="__main__")
        assert stop.value.code == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert not output.exists(), "nothing is written"
        return lines[0]

    return command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Copy of one sample task, which tests may damage."""
    shutil.copytree(SAMPLE / "FOMC", tmp_path / "data" / "FOMC")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter.rnak", "8"], "unrecognized arguments: --adapter.rnak"),
        (["--adapter.ran", "8"], "unrecognized arguments: --adapter.ran"),
        (["--adapter.rank", "true"], "adapter.rank is true; it is not a yes-or-no setting"),
        (["--adapter.threshold_strength", ".nan"], "adapter.threshold_strength is nan; it must be a finite number"),
        (["--train.learning_rate", ".inf"], "train.learning_rate is inf; it must be a finite number"),
        (["--train.adam_beta1", "1"], "train.adam_beta1 is 1.0; it must be at least 0 and below 1"),
        (["--data_dir", "~nouser/x"], "~nouser/x: no such home folder"),
        (["--adapter.rank", "many"], "adapter.rank: Input should be a valid integer.*found 'many'"),
        (
            ["--method", "magic"],
            "method is 'magic'; there are agem, codyra, codyra_contrast, codyra_protected, codyra_refit, "
            "codyra_weighed, contrast_lora, dare",
        ),
        (
            ["--method", "l2p", "--data.packing", "pack"],
            "method l2p: prompts precede each row of a batch, and packed rows are one; set data.packing bucket",
        ),
        (["--data_dir", "nowhere"], "nowhere: no such data folder"),
        (["--order", "FOMC,Sums"], 'unknown task "Sums"'),
        (["--adapter.target_modules", "c_attn"], '"c_attn" matches no projection of this model; it has down_proj'),
        (["--adapter.rank", "0"], "rank is 0; it must be at least 1"),
        (["--adapter.rank", "17"], "rank is 17, but model.layers.0.self_attn.k_proj holds at most 16"),
        (
            ["--adapter.threshold_mode", "reference"],
            "FOMC: the threshold can prune nothing in 8 steps: 4 sparse steps are too few in reference mode",
        ),
        (
            ["--adapter.dense_fraction", "1"],
            "prune nothing in 8 steps: no step is sparse; lower adapter.dense_fraction 1",
        ),
        (["--adapter.threshold_strength", "0.1"], "can prune nothing in importance mode|which can prune nothing"),
        (["--data.max_answer_length", "1"], r"FOMC/train.json row 1: the answer has \d tokens"),
        (["--data.max_prompt_length", "5"], "row 1: the prompt without its body has"),
        (["--model.name_or_path", "no/such/model/folder"], "model.name_or_path no/such/model/folder: "),
        (["--model.name_or_path", "nothing.gguf"], "nothing.gguf: no such file"),
        (["--deepspeed", "nothing.json"], "nothing.json: No such file.*; deepspeed takes a JSON file"),
        (["--config", "nothing.yaml"], "nothing.yaml: No such file"),
        (["--task_file", "nothing.yaml"], "nothing.yaml: No such file"),
    ],
)
def test_arguments(fails: Command, arguments: list[str], message: str) -> None:
    assert re.search(message, fails(*arguments))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FOMC/train.json: No such file"),
        ("", "FOMC/train.json line 1"),
        ("[]", "FOMC/train.json: no rows"),
        ('[{"prompt": "a", "answer": "b"},\n {"prompt" "c"}]', "FOMC/train.json line 2 column"),
        ('[{"prompt": "a", "answer": "b"}, {"prompt": "a"}]', 'FOMC/train.json row 2: no "answer"; every row needs'),
    ],
)
def test_data_files(fails: Command, data: Path, text: str | None, message: str) -> None:
    file = data / "FOMC" / "train.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    assert message in fails("--data_dir", str(data))


def test_unknown_keys_and_wrong_types_in_a_file(fails: Command, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("adapter: {rnk: 8}\n")
    assert 'unknown key "adapter.rnk"; did you mean "adapter.rank"?' in fails("--config", str(file))
    file.write_text("train: {learning_rate: fast}\n")
    assert "train.learning_rate: Input should be a valid number" in fails("--config", str(file))
    file.write_text("train: [1, 2]\n")
    assert "train is a section" in fails("--config", str(file))
    file.write_text("a: b: c\n")
    assert "not valid YAML" in fails("--config", str(file))


def test_an_unknown_scorer(fails: Command, tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": {"FOMC": {"scorer": "bleurt"}}}))
    assert 'task FOMC: unknown scorer "bleurt"; there are accuracy, choice' in fails("--task_file", str(file))


def test_a_deepspeed_file_that_would_change_the_result(fails: Command, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"train_batch_size": 4}')
    assert '"train_batch_size" is decided by train.global_batch_size' in fails("--deepspeed", str(file))
    file.write_text("{")
    assert "line 1 column 2: not valid JSON" in fails("--deepspeed", str(file))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amp": {"enabled": True}}, '"amp" is decided by model.dtype'),
        ({"torch_autocast": {"enabled": True}}, '"torch_autocast" is decided by model.dtype'),
        ({"zero_optimization": 3}, "zero_optimization is 3; it must be an object"),
        ({"zero_optimization": None}, "zero_optimization is None; it must be an object"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage: .*found 7"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage: .*found 'two'"),
        ({"zero_optimization": {"stage": 2, "stages": 1}}, "zero_optimization.stages: Extra inputs are not permitted"),
        ({"zero_optimization": {"stage": 3, "sub_group_size": 1000}}, "sub_group_size is 1000; it must be at least"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "offload_optimizer: offload to .nvme. is"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param: offload to .nvme. is not"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size: ZeRO.. is not"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights: ZeRO.. is not"),
    ],
)
def test_deepspeed_settings_that_cannot_work(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message) as error:
        read_deepspeed_json(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), ("config.json", '{"model_type": "llama", "hidden_size": "x"}')]
)
def test_a_damaged_model_configuration(fails: Command, tiny_folder: Path, tmp_path: Path, name: str, text: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / name).write_text(text)
    assert "give a hub id, an HF folder" in fails("--model.name_or_path", str(folder))


def test_weights_that_are_missing_or_damaged(fails: Command, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing, model.norm.weight the first" in fails("--model.name_or_path", str(folder))
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert f"{folder}: cannot be loaded: " in fails("--model.name_or_path", str(folder))
    (folder / "model.safetensors").unlink()
    assert f"{folder}: cannot be loaded: " in fails("--model.name_or_path", str(folder))


def test_a_quantized_base_that_cannot_be_had(fails: Command, tiny_folder: Path, tmp_path: Path) -> None:
    int8 = ["--model.quantization", "int8", "--deepspeed", "ds_configs/zero3.json"]
    assert "ds_configs/zero3.json: ZeRO stage 3 cannot partition int8 weights" in fails(*int8)
    assert "model.quantization: Input should be 'nf4' or 'int8', found 'int4'" in fails("--model.quantization", "int4")
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    assert "its weights are quantized already; give the original" in fails("--model.name_or_path", str(folder))


@pytest.mark.parametrize("attention", ["magic", "flash_attention_2"])
def test_attention_that_is_not_to_be_had(fails: Command, attention: str) -> None:
    message = fails("--model.attn_implementation", attention)
    assert f"cannot be loaded with model.attn_implementation {attention}: " in message


def test_a_cache_that_cannot_be_written(fails: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "model.gguf").touch()
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "file" / "cache"))
    assert "set CODYRA_CACHE to a folder" in fails("--model.name_or_path", str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("option", ["--config", "--task_file", "--deepspeed"])
def test_files_that_are_not_text(fails: Command, tmp_path: Path, option: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe")
    assert f"{file}: not UTF-8 text (byte 0); save it as UTF-8" in fails(option, str(file))
    assert f"{tmp_path}: Is a directory; " in fails(option, str(tmp_path))
    assert "~nouser/x: no such home folder" in fails(option, "~nouser/x")
    file.write_text("[" * 100_000 if option == "--deepspeed" else "[" * 3000)
    assert f"{file}: nested too deeply" in fails(option, str(file))


def test_output_folders_that_must_not_be_touched(fails: Command, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 7\n")
    assert "holds a run with another configuration" in fails("--output_dir", str(other))
    (other / "config.yaml").rename(other / "thesis.tex")
    assert "holds files that are not a run" in fails("--output_dir", str(other))
    assert (other / "thesis.tex").exists()
    assert "is a file" in fails("--output_dir", str(other / "thesis.tex"))
    assert "cannot be written" in fails("--output_dir", str(other / "thesis.tex" / "run"))


def test_a_tokenizer_without_end_mark(fails: Command, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["eos_token"] = None
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is None
    assert "no end-of-sequence token" in fails("--model.name_or_path", str(folder))


def test_a_model_that_is_not_a_causal_lm(fails: Command, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    assert "BertForMaskedLM is not a causal language model" in fails("--model.name_or_path", str(folder))


def test_part_of_a_launchers_environment(fails: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from codyra_llm.distributed import ranks

    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE set but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in fails()
