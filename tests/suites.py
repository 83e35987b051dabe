"""A suite of general ability, as a user would write one."""

import json
from pathlib import Path
from typing import Any


def write_suite(folder: Path, **changes: Any) -> str:
    """Writes a suite of eight multiple-choice questions, each with its own context; returns its file."""
    items = [
        {"question": f"Is {number} even?", "choices": ["it is even", "no", "maybe so"], "answer": number % 2}
        for number in range(8)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    content = {
        "task": "evens",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
        **changes,
    }
    (folder / "evens.yaml").write_text(json.dumps(content))  # YAML is a superset
    return str(folder / "evens.yaml")
