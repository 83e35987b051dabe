"""The built-in model, GGUF files, and the files of a saved model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.adapter.injection import find_targets
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.zero import weight_layout, whole_weights
from codyra_llm.models.gguf import BUILTIN
from codyra_llm.models.load import load_model, meta_model
from codyra_llm.models.save import save_model
from codyra_llm.models.source import open_source, resolve_model


def test_the_builtin_model_is_an_ordinary_folder_with_210_projections() -> None:
    folder = Path(resolve_model(BUILTIN))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    source = open_source(BUILTIN)
    config, tokenizer = source.config, source.tokenizer
    assert tokenizer.eos_token_id is not None
    model = meta_model(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert len(find_targets(model, CoDyRAConfig())) == 210


def test_a_cache_that_cannot_be_written_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path))
    (tmp_path / BUILTIN).mkdir()
    (tmp_path / f"{BUILTIN}.lock").mkdir()  # a folder of this name, so that no lock file can be created
    assert resolve_model(BUILTIN) == str(tmp_path / BUILTIN)


def test_the_builtin_model_knows_english() -> None:
    model, tokenizer = load_model(BUILTIN), open_source(BUILTIN).tokenizer
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_what_was_loaded(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    start()
    model, tokenizer = load_model(str(tiny_folder), dtype), open_source(str(tiny_folder)).tokenizer
    save_model(model, weight_layout(model), whole_weights(model), tokenizer, tmp_path / "saved", "# card")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.dtype == getattr(torch, dtype)
    for name, parameter in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], parameter)
    text = "Stance: A"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (tmp_path / "saved" / "README.md").read_text() == "# card"
