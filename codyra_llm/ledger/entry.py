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
from torch.nn import functional

from codyra_llm.adapter.merge import Deltas, Factors, norm_of_product
from codyra_llm.errors import UserError
from codyra_llm.files import replace_folder, sha256

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OF_ONE_TASK = (
    "The update of one task. It belongs to the model as the task found it: the base model of the ledger plus the\n"
    "entries before this one, not the base model alone."
)
PREFIX, TAIL = "base_model.model.", ".lora_B.weight"


def write_entry(
    folder: Path, updates: Deltas, base_model: str, belongs: str = OF_ONE_TASK, served_rank: int | None = None
) -> dict[str, str]:
    """Writes an entry beside and renames it; returns the SHA-256 of its files, by name.

    Args:
        updates: for each projection (B [out_features, rank] with all folded in, A [rank, in_features]), fp32.
        base_model: name of the model that the run began with.
        belongs: says to what model the update belongs.
        served_rank: pads each projection with zeros to this rank, for servers that want one rank for all.
    """
    kept = {name: pair for name, pair in updates.items() if len(pair[1])}
    if served_rank is not None:
        kept = {name: _padded(name, pair, served_rank) for name, pair in kept.items()}
    ranks = {name: len(A) for name, (_, A) in kept.items()}
    patterns = ranks if served_rank is None else {}
    largest = served_rank or max(ranks.values(), default=1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": sorted(kept),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {key: factor for name, pair in kept.items() for key, factor in zip(_keys(name), pair, strict=True)}
    with replace_folder(folder) as scratch:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scratch / WEIGHTS)
        (scratch / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (scratch / "README.md").write_text(f"---\nlibrary_name: peft\n---\n{belongs}\n", encoding="utf-8")
        return {name: sha256(scratch / name) for name in (WEIGHTS, CONFIG)}


def read_entry(folder: Path) -> Deltas:
    """What `write_entry` was given, but for the projections that kept nothing."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return {name: _read_factors(file, name) for name in _names(file)}


def summed(
    folders: Sequence[Path], of: Path | None = None, shares: Sequence[float] | None = None
) -> Iterator[tuple[str, Factors]]:
    """(projection, factors whose product is the sum of its updates in all entries), by name: B and A are stacked.

    Args:
        folders: the entries, in the order in which they are added.
        of: leaves out the projections that this entry does not touch.
        shares: what each is multiplied by; 1 by default.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / WEIGHTS, "pt")) for folder in folders]
        names = [set(_names(file)) for file in files]
        wanted = set().union(*names) if of is None else names[list(folders).index(of)]
        for name in sorted(wanted):
            Bs, As = [], []
            for file, known, share in zip(files, names, shares or [1.0] * len(files), strict=True):
                if name in known:
                    B, A = _read_factors(file, name)
                    Bs.append(B * share)
                    As.append(A)
            yield name, (torch.cat(Bs, dim=1), torch.cat(As))


def shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of each projection that an entry touches."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        sizes = {name: [file.get_slice(key).get_shape() for key in _keys(name)] for name in _names(file)}
    return {name: (B[0], A[1]) for name, (B, A) in sizes.items()}


def drift(folders: Sequence[Path]) -> dict[str, float]:
    """Frobenius norm of the sum of all entries' updates, for each projection that has any."""
    return {name: norm_of_product(*factors) for name, factors in summed(folders)}


def _names(file: Any) -> list[str]:
    return [key[len(PREFIX) : -len(TAIL)] for key in file.keys() if key.endswith(TAIL)]  # noqa: SIM118 no mapping


def _keys(name: str) -> tuple[str, str]:
    return f"{PREFIX}{name}.lora_B.weight", f"{PREFIX}{name}.lora_A.weight"


def _read_factors(file: Any, name: str) -> Factors:
    B, A = (file.get_tensor(key) for key in _keys(name))
    return B, A


def _padded(name: str, factors: Factors, rank: int) -> Factors:
    """The same product, from factors of a larger rank."""
    (B, A), missing = factors, rank - len(factors[1])
    if missing < 0:
        raise UserError(f"{name} has rank {len(A)}; the served rank {rank} must be at least that")
    return functional.pad(B, (0, missing)), functional.pad(A, (0, 0, 0, missing))
