"""ZeRO stage 3: weights are read, merged, saved and gathered in parts, with unchanged results."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from codyra_llm.distributed.ranks import start
from codyra_llm.engine.zero import weight_layout, whole_weights
from codyra_llm.models.load import load_model
from codyra_llm.models.save import save_model
from tests.conftest import REPOSITORY
from tests.distributed.zero3_worker import LARGEST_FILES, saved_folder
from tests.models import COMMON, tiny_model

BIG: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def folder(tokenizers_by_family: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders: one file or several, tied or not, with renamed keys, decoder only, with a missing weight."""
    folder = tmp_path_factory.mktemp("zero3")
    for name in ("llama", "gemma"):
        model = tiny_model(name)
        model.save_pretrained(folder / name)
        model.save_pretrained(folder / f"{name}-shards", max_shard_size="50KB")
        assert len(list((folder / f"{name}-shards").glob("*.safetensors"))) > 1
    text, vision = tiny_model("gemma3").config.to_dict(), SiglipVisionConfig(**VISION).to_dict()
    many = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(many).save_pretrained(folder / "gemma3-renamed")
    llama = load_file(folder / "llama" / "model.safetensors")
    changed = {
        "llama-decoder": {name.removeprefix("model."): weight for name, weight in llama.items()},
        "llama-incomplete": {name: weight for name, weight in llama.items() if name != "model.norm.weight"},
    }
    for name, weights in changed.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text((folder / "llama" / "config.json").read_text())
        save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
    AutoModelForCausalLM.from_config(LlamaConfig(**{**COMMON, **BIG})).save_pretrained(folder / "big")
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(folder / "llama")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    """Results of the worker on two ranks."""
    done = subprocess.run(
        [*TORCHRUN, "-m", "tests.distributed.zero3_worker", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "seen.pt")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "llama-shards", "gemma", "gemma-shards", "gemma3-renamed"])
def test_a_model_read_in_parts_is_what_transformers_loads(seen: dict[str, Any], name: str, dtype: str) -> None:
    loaded = seen["loading"][name, dtype]
    assert loaded["notes"] == []
    assert loaded["equal"] and loaded["buffers"]
    assert loaded["tied"] == name.startswith("gemma")
    assert loaded["empty"]
    assert all(share == pytest.approx(0.5, abs=0.01) for share in loaded["share"])


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_no_gathered_weight_is_kept_between_forward_and_backward(seen: dict[str, Any], impl: str) -> None:
    of, control = seen["between"][impl, False], seen["between"]["fused", True]
    assert of["gathered"] and of["gathered"] % of["projections"] == 0, "every projection's weight was gathered"
    assert of["alive"] == 0
    assert control["alive"] == control["gathered"] == of["gathered"], "a function that saved them would be seen"


def test_no_rank_holds_the_whole_model_while_it_loads(seen: dict[str, Any], folder: Path) -> None:
    size = (folder / "big" / "model.safetensors").stat().st_size
    assert all(growth < 0.7 * size for growth in seen["loading"]["growth in parts"])
    assert all(growth > 0.9 * size for growth in seen["loading"]["growth whole"]), "the measurement would show it"


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_of_another_kind_are_loaded_whole_and_then_partitioned(seen: dict[str, Any], dtype: str) -> None:
    loaded = seen["loading"]["llama-decoder", dtype]
    assert loaded["equal"] and loaded["buffers"] and loaded["empty"]
    (note,) = loaded["notes"]
    assert note.startswith("weights cannot be read in parts, so each process loads all of them first: ")


def test_a_missing_weight_is_named(seen: dict[str, Any], folder: Path) -> None:
    assert seen["loading"]["incomplete"] == (
        f"model.name_or_path {folder / 'llama-incomplete'}: 1 weights are missing, model.norm.weight the first; "
        "give a complete model"
    )


@pytest.mark.parametrize("largest_file", LARGEST_FILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "gemma", "gemma3-renamed"])
def test_two_ranks_save_the_bytes_that_one_saves(
    seen: dict[str, Any], folder: Path, tmp_path: Path, name: str, dtype: str, largest_file: int
) -> None:
    start()
    model, tokenizer = load_model(str(folder / name), dtype), AutoTokenizer.from_pretrained(folder / "llama")
    save_model(model, weight_layout(model), whole_weights(model), tokenizer, tmp_path / "one", "# card", largest_file)
    one, two = tmp_path / "one", folder / saved_folder(name, dtype, largest_file)
    model.save_pretrained(tmp_path / "transformers", max_shard_size=largest_file)
    of_transformers = {path.name for path in (tmp_path / "transformers").iterdir()}
    assert ("model.safetensors" in of_transformers) == (largest_file > 50_000)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()} > of_transformers
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
        if path.name in of_transformers and "model.safetensors" in of_transformers:  # its shard boundaries may differ
            assert path.read_bytes() == (tmp_path / "transformers" / path.name).read_bytes(), path.name
    for file in two.glob("*.safetensors"):
        with safe_open(file, "pt") as stream:
            assert stream.metadata() == {"format": "pt"}
    again = AutoModelForCausalLM.from_pretrained(two)
    assert again.dtype == getattr(torch, dtype)
    assert all(torch.equal(again.state_dict()[key], weight) for key, weight in model.state_dict().items())


def test_prune_and_merge_move_branches_only(seen: dict[str, Any]) -> None:
    learned = seen["learning"]
    assert learned["moved"] == learned["branch bytes"] > 0
    assert learned["control"] == learned["base bytes"] > 0, "a gathered base weight would be counted"


def test_each_rank_sets_its_slice_to_the_original_and_all_updates(seen: dict[str, Any]) -> None:
    assert len(seen["learning"]["merged alike"]) == 21
    assert all(seen["learning"]["merged alike"]), "to the bit, as one rank that holds the whole weight"


def test_every_way_of_gathering_scores_the_same(seen: dict[str, Any]) -> None:
    assert seen["learning"]["in step"] == {"always": False, "never": True, "auto": False}
    assert all(seen["learning"]["trainable through", how] for how in ("always", "never", "auto"))
    assert len(seen["learning"]["scores"]) == 3
    for scores in seen["learning"]["scores"]:
        for how in ("never", "auto"):
            for (nll, predictions), (expected_nll, expected) in zip(scores[how], scores["always"], strict=True):
                assert nll == pytest.approx(expected_nll, abs=1e-5)
                assert predictions == expected
    first, *_, last = seen["learning"]["scores"]
    assert first["never"] != last["never"], "the model has learned between"


def test_ranks_whose_batches_need_other_passes_stay_in_step(seen: dict[str, Any]) -> None:
    for ours, theirs in zip(seen["learning"]["unequal", "never"], seen["learning"]["unequal", "always"], strict=True):
        assert ours == (pytest.approx(theirs[0], abs=1e-5), theirs[1])


def test_a_full_disk_is_told_on_every_rank(seen: dict[str, Any], folder: Path) -> None:
    expected = f"{folder / 'run' / 'model'}: the model cannot be saved: File too large"
    assert seen["full disk"] == [expected, expected]
