"""One entry of the ledger: the update of a finished task, as a LoRA adapter in PEFT's format.

The gate (and the merged share) is folded into B, so the update of a projection is lora_B @ lora_A. Projections that
kept no component are absent. An entry is a delta against the model as the task found it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from codyra_llm.adapter.merge import Deltas, Factors, norm_of_product
from codyra_llm.files import replace_folder, sha256

WEIGHTS = "adapter_model.safetensors"
PREFIX, TAIL = "base_model.model.", ".lora_B.weight"


def write_entry(folder: Path, updates: Deltas, base_model: str) -> str:
    """Writes an entry beside and renames it; returns the SHA-256 of its weights.

    Args:
        updates: for each projection (B [out_features, rank] with all folded in, A [rank, in_features]), fp32.
        base_model: name of the model that the run began with.
    """
    kept = {name: pair for name, pair in updates.items() if len(pair[1])}
    ranks = {name: len(A) for name, (_, A) in kept.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": max(ranks.values(), default=1),
        "lora_alpha": max(ranks.values(), default=1),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(kept),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, (B, A) in kept.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
    with replace_folder(folder) as scratch:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scratch / WEIGHTS)
        (scratch / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        return sha256(scratch / WEIGHTS)


def read_entry(folder: Path) -> Deltas:
    """What `write_entry` was given, but for the projections that kept nothing."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return {name: _read_factors(file, name) for name in _names(file)}


def summed(folders: Sequence[Path], of: Path | None = None) -> Iterator[tuple[str, Factors]]:
    """(projection, factors whose product is the sum of its updates in all entries), by name: B and A are stacked.

    Args:
        folders: the entries, in the order in which they are added.
        of: leaves out the projections that this entry does not touch.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / WEIGHTS, "pt")) for folder in folders]
        names = [set(_names(file)) for file in files]
        wanted = set().union(*names) if of is None else names[list(folders).index(of)]
        for name in sorted(wanted):
            pairs = [_read_factors(file, name) for file, known in zip(files, names, strict=True) if name in known]
            yield name, (torch.cat([B for B, _ in pairs], dim=1), torch.cat([A for _, A in pairs]))


def drift(folders: Sequence[Path]) -> dict[str, float]:
    """Frobenius norm of the sum of all entries' updates, for each projection that has any."""
    return {name: norm_of_product(*factors) for name, factors in summed(folders)}


def _names(file: Any) -> list[str]:
    return [key[len(PREFIX) : -len(TAIL)] for key in file.keys() if key.endswith(TAIL)]  # noqa: SIM118 no mapping


def _read_factors(file: Any, name: str) -> Factors:
    B, A = (file.get_tensor(f"{PREFIX}{name}.lora_{part}.weight") for part in "BA")
    return B, A
