"""Code shown in pages works: the training loop of docs/adapter.md, the table of a run folder in docs/running.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from codyra_llm.report.artifacts import contents_table
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_the_plain_training_loop(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / "adapter.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    rows = torch.randint(3, 700, (4, 12))
    names: dict[str, Any] = {"MODEL": tiny_folder, "batches": [rows] * 30}
    exec(program, names)
    kept = int(capsys.readouterr().out.split()[0])
    assert 0 < kept <= 14 * 8
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        before, after = (model(input_ids=rows, labels=rows).loss for model in (base, names["model"]))
    assert after < before - 0.05
    assert sum(p.numel() for p in names["model"].parameters()) == sum(p.numel() for p in base.parameters())


def test_the_table_of_the_run_folder_is_the_code_s() -> None:
    assert contents_table().replace("](codyra_llm/", "](../codyra_llm/") in (DOCS / "running.md").read_text()
