"""Uses of a run's ledger: rebuild the model, remove tasks, learn more tasks, import and export adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from codyra_llm import run
from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError
from codyra_llm.ledger.entry import read_entry
from codyra_llm.ledger.ledger import BaseModel, Ledger, read_ledger, write_ledger
from codyra_llm.models.gguf import BUILTIN, packaged_model_folder
from codyra_llm.models.source import open_source
from codyra_llm.results.schema import read_results
from tests.comparison import assert_same_files
from tests.e2e.conftest import Command
from tests.e2e.test_run import tiny_config
from tests.models import tiny_model

TASKS = ["FOMC", "NumGLUE-cm"]
IDS = torch.arange(3, 43).view(2, 20)


def config_of(model: Path, output: Path, **overrides: object) -> RunConfig:
    short = {"order": TASKS, "train.num_train_epochs": 1, "data.max_train_examples": 48, "data.max_test_examples": 3}
    return tiny_config(model, output, **{**short, "evaluate.max_new_tokens": 2, **overrides})


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def finished(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two tasks."""
    output = tmp_path_factory.mktemp("ledger") / "run"
    run(config_of(tiny_folder, output, **{"model.dtype": request.param}))
    return output


@pytest.fixture(scope="module")
def apart(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two runs of one task each, which change different modules."""
    folders = [tmp_path_factory.mktemp("apart") / name for name in ("q", "up")]
    for folder, task, module in zip(folders, TASKS, ("q_proj", "up_proj"), strict=True):
        overrides = {"order": [task], "adapter.target_modules": [module], "evaluate.tasks": "last"}
        run(config_of(tiny_folder, folder, **overrides))
    return folders


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder: Path, expected: Path) -> None:
    assert weights(folder).keys() == weights(expected).keys()
    for name, weight in weights(expected).items():
        assert torch.equal(weights(folder)[name], weight), name


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(input_ids=IDS).logits


def test_the_ledger_holds_what_each_task_added(finished: Path) -> None:
    ledger, results = read_ledger(finished / "ledger"), read_results(finished)
    assert [entry.name for entry in ledger.entries] == ["01-FOMC", "02-NumGLUE-cm"]
    assert ledger.base_model.name == results.model.name
    for number, entry in enumerate(ledger.entries):
        assert entry.scores == dict(zip(TASKS, results.matrix[number + 1], strict=True))
        assert entry.norm == pytest.approx(results.ranks[number].update_norm)
        assert entry.components == pytest.approx(14 * results.ranks[number].mean)
        ranks = json.loads((finished / "ledger" / entry.name / "adapter_config.json").read_text())["rank_pattern"]
        assert (len(ranks), sum(ranks.values())) == (entry.projections, entry.components)
        assert "not the base model alone" in (finished / "ledger" / entry.name / "README.md").read_text()


def test_base_and_ledger_give_the_files_that_the_run_saved(finished: Path, tmp_path: Path, command: Command) -> None:
    command("materialize.py", "--ledger", finished / "ledger", "--output_dir", tmp_path / "again")
    assert_same_files(tmp_path / "again", finished / "model")
    command("materialize.py", "--ledger", finished / "ledger", "--output_dir", tmp_path / "none", "--upto", 0)
    base = read_ledger(finished / "ledger").base_model
    expected = AutoModelForCausalLM.from_pretrained(base.name, dtype=getattr(torch, base.dtype)).state_dict()
    for name, weight in weights(tmp_path / "none").items():
        assert torch.equal(weight, expected[name])
    command(
        *("materialize.py", "--ledger", finished / "ledger", "--output_dir", tmp_path / "half"),
        *("--dtype", "float16", "--scale", "FOMC=0.5", "--upto", "FOMC"),
    )
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.float16
    name = "model.layers.0.self_attn.o_proj"
    entry = load_file(finished / "ledger" / "01-FOMC" / "adapter_model.safetensors")
    B, A = (entry[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
    original = tiny_model().get_submodule(name).weight
    assert torch.equal(half.get_submodule(name).weight, (original + 0.5 * B @ A).half())


def test_a_task_taken_out_was_never_there(apart: list[Path], tmp_path: Path, command: Command) -> None:
    both = tmp_path / "ledger"
    shutil.copytree(apart[0] / "ledger", both)
    command("ledger.py", "append", both, "--adapter", apart[1] / "ledger" / "01-NumGLUE-cm", "--task", "NumGLUE-cm")
    for number, task in enumerate(TASKS):
        command("materialize.py", "--ledger", both, "--output_dir", tmp_path / task, "--without", task)
        assert_same_weights(tmp_path / task, apart[1 - number] / "model")
    command("materialize.py", "--ledger", both, "--output_dir", tmp_path / "both")
    q, up = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
    found = weights(tmp_path / "both")
    assert torch.equal(found[q], weights(apart[0] / "model")[q])
    assert torch.equal(found[up], weights(apart[1] / "model")[up])
    assert not torch.equal(found[up], weights(apart[0] / "model")[up])


def test_a_ledger_is_extended_elsewhere_as_if_it_had_never_ended(
    finished: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    dtype = {"model.dtype": read_ledger(finished / "ledger").base_model.dtype}
    run(config_of(tiny_folder, tmp_path / "first", **{**dtype, "order": TASKS[:1]}))
    shutil.copytree(tiny_folder, tmp_path / "base")
    shutil.move(tmp_path / "first" / "ledger", tmp_path / "ledger")
    shutil.rmtree(tmp_path / "first")
    extended = config_of(
        tmp_path / "base", tmp_path / "second", **dtype, extend=str(tmp_path / "ledger"), order=TASKS[1:]
    )
    results, expected = run(extended), read_results(finished)
    assert results.tasks == TASKS[1:]
    assert results.losses == expected.losses[1:]
    assert [row[0] for row in results.matrix] == [row[1] for row in expected.matrix[1:]]
    assert results.ranks == expected.ranks[1:]
    assert_same_weights(tmp_path / "second" / "model", finished / "model")
    ours, theirs = (read_ledger(folder / "ledger") for folder in (tmp_path / "second", finished))
    weights_of = [
        {name: digest for name, digest in ledger.files.items() if "model" in name} for ledger in (ours, theirs)
    ]
    assert weights_of[0] == weights_of[1]
    assert run(extended).losses == results.losses, "a finished one is left as it is"


@pytest.mark.parametrize("scaling", ["plain", "rslora", "patterns"])
def test_an_adapter_that_peft_trained_becomes_an_entry(
    apart: list[Path], tiny_folder: Path, tmp_path: Path, command: Command, scaling: str
) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "down_proj"],
        use_rslora=scaling == "rslora",
        rank_pattern={"layers.0.mlp.down_proj": 2} if scaling == "patterns" else {},
        alpha_pattern={"q_proj": 3, "layers.0.mlp.down_proj": 7} if scaling == "patterns" else {},
        task_type="CAUSAL_LM",
    )
    base = AutoModelForCausalLM.from_pretrained(apart[0] / "model")
    theirs = get_peft_model(base, config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    ledger = tmp_path / "ledger"
    shutil.copytree(apart[0] / "ledger", ledger)
    assert "02-mine" in command("ledger.py", "append", ledger, "--adapter", tmp_path / "adapter", "--task", "mine")
    command("materialize.py", "--ledger", ledger, "--output_dir", tmp_path / "model")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_ledger_is_one_adapter_against_the_base_model(
    finished: Path, tiny_folder: Path, tmp_path: Path, command: Command, padded: bool
) -> None:
    said = command(
        *("ledger.py", "export", finished / "ledger", "--output_dir", tmp_path / "sum"), *(["--rank", 8] * padded)
    )
    entries = read_ledger(finished / "ledger").entries
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    ranks = {
        len(A) for name, A in load_file(tmp_path / "sum" / "adapter_model.safetensors").items() if "lora_A" in name
    }
    if padded:
        assert (ranks, config["rank_pattern"], config["r"]) == ({8}, {}, 8)
    else:
        assert sum(config["rank_pattern"].values()) == sum(entry.components for entry in entries)
        assert f"rank {max(ranks)}" in said
    assert "belongs to the base model alone" in (tmp_path / "sum" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    theirs = PeftModel.from_pretrained(base, tmp_path / "sum")
    command("materialize.py", "--ledger", finished / "ledger", "--output_dir", tmp_path / "model", "--dtype", "float32")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (logits(ours) - logits(AutoModelForCausalLM.from_pretrained(tiny_folder))).abs().max() > 0.05
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-4, rtol=1e-4)


def test_one_entry_padded_for_servers_of_one_rank(finished: Path, tmp_path: Path, command: Command) -> None:
    command("ledger.py", "export", finished / "ledger", "--output_dir", tmp_path / "one", "--only", "FOMC", "--rank", 8)
    padded = load_file(tmp_path / "one" / "adapter_model.safetensors")
    own = load_file(finished / "ledger" / "01-FOMC" / "adapter_model.safetensors")
    assert padded.keys() == own.keys()
    for name in (name for name in own if "lora_A" in name):
        B = name.replace("lora_A", "lora_B")
        assert len(padded[name]) == 8
        torch.testing.assert_close(padded[B] @ padded[name], own[B] @ own[name])
    assert "not the base model alone" in (tmp_path / "one" / "README.md").read_text()


def test_one_entry_is_no_selection(tmp_path: Path, refused: Command) -> None:
    export = ("ledger.py", "export", tmp_path / "ledger", "--output_dir", tmp_path / "one", "--only", "FOMC")
    for also in (("--scale", "FOMC=0.5"), ("--upto", 1), ("--without", "FOMC")):
        assert "--only: stands alone" in refused(*export, *also)


def test_a_base_that_came_as_gguf(tmp_path: Path, command: Command) -> None:
    name, ledger = "model.layers.3.mlp.down_proj", tmp_path / "ledger"
    torch.manual_seed(0)
    B, A = torch.randn(576, 2) * 0.01, torch.randn(2, 1536)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[name], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path / "adapter")
    key = f"base_model.model.{name}.lora_"
    save_file({f"{key}A.weight": A, f"{key}B.weight": B}, tmp_path / "adapter" / "adapter_model.safetensors")
    write_ledger(ledger, Ledger(BaseModel(BUILTIN, open_source(BUILTIN).sha256, "bfloat16")))
    command("ledger.py", "append", ledger, "--adapter", tmp_path / "adapter", "--task", "mine")
    command("materialize.py", "--ledger", ledger, "--output_dir", tmp_path / "model")
    found, original = weights(tmp_path / "model"), weights(packaged_model_folder(BUILTIN))
    for weight_name, weight in original.items():
        expected = weight + B @ A if weight_name == f"{name}.weight" else weight
        torch.testing.assert_close(found[weight_name], expected.bfloat16(), atol=0, rtol=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_show_verify_and_diff(finished: Path, apart: list[Path], tmp_path: Path, command: Command) -> None:
    ledger = finished / "ledger"
    shown = command("ledger.py", "show", ledger).splitlines()
    assert shown[1].split() == ["entry", "projections", "components", "norm", *TASKS]
    assert [line.split()[0] for line in shown[2:]] == ["01-FOMC", "02-NumGLUE-cm"]
    assert "2 entries, all as they were written" in command("ledger.py", "verify", ledger)
    assert "the models are 0 apart" in command("ledger.py", "diff", ledger, ledger)
    lines = command("ledger.py", "diff", ledger, apart[0] / "ledger").splitlines()
    assert (lines[1].split()[-1], lines[2].split()[-1]) == ("differs", "first")
    base = weights(Path(read_ledger(ledger).base_model.name))
    command("materialize.py", "--ledger", ledger, "--output_dir", tmp_path / "model", "--dtype", "float32")
    ours, theirs = weights(tmp_path / "model"), weights(apart[0] / "model")
    far = sum(float((ours[name] - theirs[name]).norm()) ** 2 for name in base) ** 0.5
    assert f"the models are {far:.3g} apart" in lines[-1]


def test_pickled_weights_are_merged_in_place_if_that_is_asked_for(
    tmp_path: Path, tiny_folder: Path, refused: Command
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"merge\.mode exact needs weights that can be read in parts: .*in_place"):
        run(config_of(folder, tmp_path / "exact", order=TASKS[:1]))
    assert not (tmp_path / "exact").exists()
    in_place = {"merge.mode": "in_place"}
    run(config_of(folder, tmp_path / "first", order=TASKS[:1], **in_place))
    run(config_of(folder, tmp_path / "run", order=TASKS[1:], extend=str(tmp_path / "first" / "ledger"), **in_place))
    name = "model.layers.0.self_attn.o_proj"
    expected = tiny_model().get_submodule(name).weight.detach()
    for entry in read_ledger(tmp_path / "run" / "ledger").entries:
        B, A = read_entry(tmp_path / "run" / "ledger" / entry.name)[name]
        expected = expected + B @ A
    torch.testing.assert_close(weights(tmp_path / "run" / "model")[f"{name}.weight"], expected)
    said = refused("materialize.py", "--ledger", tmp_path / "run" / "ledger", "--output_dir", tmp_path / "model")
    assert "weights cannot be read in parts" in said
