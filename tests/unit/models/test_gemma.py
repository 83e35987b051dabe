"""Gemma 3 270M, which requires agreement to its terms; tests that load it need it in the cache."""

from pathlib import Path

import pytest
import torch

from codyra_llm.adapter import CoDyRAConfig
from codyra_llm.adapter.injection import find_targets
from codyra_llm.config import parse_command_line
from codyra_llm.errors import UserError
from codyra_llm.files import cache_folder
from codyra_llm.models.gguf import GEMMA
from codyra_llm.models.load import load_model, meta_model
from codyra_llm.models.source import open_source, resolve_model


def test_nothing_is_fetched_unless_the_terms_are_agreed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"ai.google.dev/gemma/terms; if you agree to them, give --accept-gemma-terms"):
        resolve_model(GEMMA)
    assert not (tmp_path / GEMMA).exists()


def test_agreeing_is_a_flag() -> None:
    assert not parse_command_line([], "").model.accept_gemma_terms
    assert parse_command_line(["--accept-gemma-terms"], "").model.accept_gemma_terms


@pytest.fixture
def present() -> None:
    if not (cache_folder() / GEMMA).is_dir():
        pytest.skip(f"{GEMMA} is not in {cache_folder()}: it is fetched by a run that is given --accept-gemma-terms")


@pytest.mark.usefixtures("present")
def test_it_is_the_published_architecture() -> None:
    source = open_source(GEMMA)
    config, tokenizer = source.config, source.tokenizer
    model = meta_model(config)
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert len(find_targets(model, CoDyRAConfig())) == 18 * 7
    assert tokenizer("Rome")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.usefixtures("present")
def test_it_knows_english() -> None:
    model, tokenizer = load_model(GEMMA, "bfloat16"), open_source(GEMMA).tokenizer
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = model(ids).logits[0, -1].topk(5).indices  # of 262,144; a small base model need not have it first
    assert "Paris" in [tokenizer.decode(token).strip() for token in likeliest]
