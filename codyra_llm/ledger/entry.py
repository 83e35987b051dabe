"""One entry of the ledger: the update of a finished task, as a LoRA adapter in PEFT's format.

The gate (and the merged share) is folded into B, so the update of a projection is lora_B @ lora_A. Projections that
kept no component are absent. An entry is a delta relative to the model before its task.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from codyra_llm.adapter.merging import Deltas, Factors, largest_change, norm_of_product, stacked
from codyra_llm.errors import UserError
from codyra_llm.files import replace_folder, sha256
from codyra_llm.text import shown

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OF_ONE_TASK = (
    "The update of one task. It belongs to the model as the task found it: the base model of the ledger plus the\n"
    "entries before this one, not the base model alone."
)
Combine = Callable[[Sequence[Factors | None]], Factors]  # combines all entries' updates of a projection into one
PREFIX, TAIL = "base_model.model.", ".lora_B.weight"


def write_entry(
    folder: Path,
    updates: Deltas,
    base_model: str,
    belongs: str = OF_ONE_TASK,
    served_rank: int | None = None,
    task_type: str | None = "CAUSAL_LM",
) -> dict[str, str]:
    """Writes an entry to a temporary folder and renames that; returns the SHA-256 of its files, by name.

    Args:
        folder: the folder of the entry.
        updates: for each projection (B [out_features, rank], which includes gate and scale, A [rank, in_features]),
            fp32.
        base_model: name of the base model of the run.
        belongs: text for the README that names the model that the update belongs to.
        served_rank: rank to which each projection is padded with zeros, for servers that need the same rank for all.
        task_type: PEFT's task type of the model; None if PEFT has none for it.
    """
    kept = {name: pair for name, pair in updates.items() if len(pair[1])}
    if served_rank is not None:
        kept = {name: _padded(name, pair, served_rank) for name, pair in kept.items()}
    ranks = {name: len(A) for name, (_, A) in kept.items()}
    patterns = ranks if served_rank is None else {}
    largest = served_rank or max(ranks.values(), default=1)
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
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
        write_readme(scratch, belongs)
        return {name: sha256(scratch / name) for name in (WEIGHTS, CONFIG)}


def write_readme(folder: Path, belongs: str = OF_ONE_TASK) -> None:
    """Writes a folder's README.md with the text `belongs`, which names the model that the update belongs to."""
    (folder / "README.md").write_text(f"---\nlibrary_name: peft\n---\n{belongs}\n", encoding="utf-8")


def read_entry(folder: Path) -> Deltas:
    """Reads the updates that were given to `write_entry`, without the projections that kept no component.

    Raises:
        UserError: the file was not written by `write_entry`, or contains values that are not finite.
    """
    with _opened(folder) as file:
        return {name: _read_factors(file, name, folder) for name in _names(file, folder)}


def summed(
    folders: Sequence[Path],
    of: Path | None = None,
    shares: Sequence[float] | None = None,
    combine: Combine | None = None,
) -> Iterator[tuple[str, Factors]]:
    """Yields (projection, factors of its update by all entries), ordered by name; for a sum, B and A are stacked.

    Args:
        folders: the entries, in the order in which they are added.
        of: only projections that this entry changes are returned; None: all.
        shares: factor of each entry; 1 by default.
        combine: combines the updates of all entries into one, with None for an entry that does not change the
            projection; by default they are summed.

    Raises:
        UserError: as `read_entry`; the updates differ in shape; or their sum may exceed the range of fp32.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(folder)) for folder in folders]
        names = [set(_names(file, folder)) for file, folder in zip(files, folders, strict=True)]
        wanted = set().union(*names) if of is None else names[list(folders).index(of)]
        for name in sorted(wanted):
            updates: list[Factors | None] = []
            for file, folder, known, share in zip(files, folders, names, shares or [1.0] * len(files), strict=True):
                if name in known:
                    B, A = _read_factors(file, name, folder)
                    updates.append((B * share, A))
                else:
                    updates.append(None)
            yield name, _combined(name, updates, folders, combine)


def shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns (out_features, in_features) of each projection that an entry changes."""
    with _opened(folder) as file:
        return {name: _checked_shape(file, name, folder) for name in _names(file, folder)}


def drift(folders: Sequence[Path], combine: Combine | None = None) -> dict[str, float]:
    """Returns the Frobenius norm of each changed projection's update by all entries; `combine` as for `summed`."""
    return {name: norm_of_product(*factors) for name, factors in summed(folders, combine=combine)}


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    try:
        file = safe_open(folder / WEIGHTS, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read as safetensors: {error}") from None
    with file as opened:
        yield opened


def _names(file: Any, folder: Path) -> list[str]:
    keys = list(file.keys())
    names = [key[len(PREFIX) : -len(TAIL)] for key in keys if key.endswith(TAIL)]
    if other := set(keys).symmetric_difference(key for name in names for key in _keys(name)):
        raise UserError(f"{folder / WEIGHTS}: {shown(min(other))} has no counterpart; an update is lora_B and lora_A")
    return names


def _keys(name: str) -> tuple[str, str]:
    return f"{PREFIX}{name}.lora_B.weight", f"{PREFIX}{name}.lora_A.weight"


def _checked_shape(file: Any, name: str, folder: Path) -> tuple[int, int]:
    """Returns (out_features, in_features) of an update; raises UserError if factors do not match or are not fp32."""
    parts = [file.get_slice(key) for key in _keys(name)]
    B, A = (part.get_shape() for part in parts)
    if len(B) != 2 or len(A) != 2 or B[1] != A[0] or 0 in (*B, *A):
        raise UserError(f"{folder / WEIGHTS}: {shown(name)}: lora_B {B} and lora_A {A} do not fit")
    if wrong := {part.get_dtype() for part in parts} - {"F32"}:
        raise UserError(f"{folder / WEIGHTS}: {shown(name)}: holds {min(wrong)}; an entry holds F32")
    return B[0], A[1]


def _read_factors(file: Any, name: str, folder: Path) -> Factors:
    _checked_shape(file, name, folder)
    B, A = (file.get_tensor(key) for key in _keys(name))
    if not (torch.isfinite(B).all() and torch.isfinite(A).all()):
        raise UserError(f"{folder / WEIGHTS}: {name} holds values that are not finite; restore it, or leave it out")
    return B, A


def _combined(
    name: str, updates: Sequence[Factors | None], folders: Sequence[Path], combine: Combine | None
) -> Factors:
    if len({(len(B), A.shape[1]) for B, A in filter(None, updates)}) > 1:
        raise UserError(f"{folders[0].parent}: the entries' updates of {name} differ in shape; they have no sum")
    B, A = (combine or stacked)(updates)
    largest = largest_change(B, A)
    if not largest <= torch.finfo(torch.float32).max / 2:
        raise UserError(f"{folders[0].parent}: the sum of the updates of {name} may reach {largest:.3g}; lower a share")
    return B, A


def _padded(name: str, factors: Factors, rank: int) -> Factors:
    """Returns factors of the given rank with the same product, padded with zeros."""
    (B, A), missing = factors, rank - len(factors[1])
    if missing < 0:
        raise UserError(f"{name} has rank {len(A)}; the served rank {rank} must be at least that")
    return functional.pad(B, (0, missing)), functional.pad(A, (0, 0, 0, missing))
