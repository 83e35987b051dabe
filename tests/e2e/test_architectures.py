"""Every architecture in docs/models.md is trained, merged and saved, and transformers loads the same model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from codyra_llm import run
from codyra_llm.adapter.config import DEFAULT_TARGETS
from codyra_llm.errors import UserError
from tests.conftest import REPOSITORY
from tests.e2e.test_run import tiny_config
from tests.models import COMMON

PAGE = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\w+) \| ([\w, ]+) \|$", PAGE, re.MULTILINE)
SHORT = {
    "order": ["FOMC"],
    "adapter.rank": 2,
    "adapter.target_modules": ["auto"],
    "data.max_train_examples": 16,
    "data.max_test_examples": 2,
    "evaluate.max_new_tokens": 2,
    "evaluate.tasks": "last",
}


def save_tiny(kind: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **COMMON))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "architecture", "projections"), ROWS, ids=[kind for kind, _, _ in ROWS])
def test_it_learns_and_is_what_was_scored(
    kind: str, architecture: str, projections: str, tiny_folder: Path, tmp_path: Path
) -> None:
    model = save_tiny(kind, AutoTokenizer.from_pretrained(tiny_folder), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)  # it may be of the architecture's own class
    results = run(tiny_config(model, tmp_path / "run", **SHORT))
    assert results.model.architecture == architecture
    expected = list(DEFAULT_TARGETS) if projections == "the seven" else projections.split(", ")
    assert list(results.ranks[0].by_projection) == expected
    assert results.ranks[0].update_norm > 0
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    saved, report = loaded
    assert not report["missing_keys"]
    lines = (tmp_path / "run" / "predictions" / "1-FOMC.FOMC.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["reference"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            logits = saved(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[0, len(prompt) :])
        assert float(loss) == pytest.approx(row["nll"], abs=1e-3)


def test_a_model_without_linear_layers_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = save_tiny("gpt2", AutoTokenizer.from_pretrained(tiny_folder), tmp_path / "model")
    with pytest.raises(UserError, match="target_modules: auto finds no linear layer in GPT2LMHeadModel"):
        run(tiny_config(model, tmp_path / "run", **SHORT))


def test_the_page_lists_what_is_tested() -> None:
    assert len(ROWS) >= 28
    assert len(ROWS) == sum(line.startswith("| `") for line in PAGE.splitlines()) - 1, "but for the head"
