"""Numbers that published code gave, and methods to compare with them."""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from codyra_llm.config import load_config
from codyra_llm.methods import METHODS, Method

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def method_of(name: str, **settings: object) -> Method:
    """Returns a method at rank 4 with some settings."""
    return METHODS[name](load_config(None, {"method": name, "adapter.rank": 4, **settings}))


def oracle(golden: Path, name: str) -> dict[str, Any]:
    """Returns what published code of a method gave: tensors, floats, and texts as arrays."""
    with numpy.load(golden / "baselines" / f"{name}.npz") as file:
        return {key: _plain(value) for key, value in file.items()}


def _plain(value: numpy.ndarray) -> Any:
    if value.dtype.kind == "U":
        return value
    return torch.from_numpy(value) if value.ndim else float(value)


def cases(golden: Path, name: str, start: str = "case") -> list[dict[str, Any]]:
    """Returns the numbered cases of a golden file."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in oracle(golden, name).items():
        if key.startswith(start):
            case, _, rest = key.partition("/")
            found.setdefault(case, {})[rest] = value
    return list(found.values())


def learn(method: Method, model: nn.Module, task: str) -> dict[str, Any]:
    """Trains a task with plain AdamW; returns its update in the ledger's form."""
    ready = method.prepare(model, task, 10)
    torch.manual_seed(len(task))
    ids = torch.randint(3, 700, (4, 12))
    for _ in range(10):
        model(input_ids=ids, labels=ids).loss.backward()
        ready.optimizer.step()
        ready.optimizer.zero_grad()
    return method.finish(model)[1]
