"""Merging the entries of a ledger into a loaded model: the same code during a run and after a restart."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.merging import Fill
from codyra_llm.config import RunConfig
from codyra_llm.distributed.ranks import Ranks, broadcast, on_rank_0
from codyra_llm.engine.zero import add_delta, first_not_finite, weight_layout, whole_weights
from codyra_llm.errors import UserError, reason
from codyra_llm.ledger.entry import Combine, summed
from codyra_llm.ledger.weights import merged_weights
from codyra_llm.models.load import meta_model, original_weights
from codyra_llm.models.shards import checkpoint_tensors
from codyra_llm.models.source import Source

Original = Callable[[str], Fill]


def find_original(config: RunConfig, source: Source) -> Original | None:
    """Returns the original weights by name, which all updates are added to; None if updates are merged in place.

    Raises:
        UserError: merge.mode is exact, and the original weights cannot be read in parts.
    """
    if config.merge.mode == "in_place":
        return None
    try:
        return original_weights(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name_or_path {source.name}: merge.mode exact needs weights that can be read in parts: "
            f"{reason(error)}; save the model as safetensors, or set merge.mode in_place, which rounds the weights "
            "after each task"
        ) from None


def merge_entries(
    model: nn.Module,
    original: Original | None,
    ledger: Path | None,
    names: Sequence[str],
    ranks: Ranks,
    last_only: bool = False,
    combine: Combine | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Sets each weight that entries change to round(original + the sum of their updates). Every rank must call it.

    Without `original`, updates are added one after another to the current weights.

    Args:
        model: the plain model, without branches.
        original: returns the original values of a weight, by name; None: updates are merged in place.
        ledger: the folder that contains the entries, on rank 0.
        names: the entries, in order.
        ranks: all ranks.
        last_only: whether the weights already contain all entries but the last.
        combine: as for `summed`; needs `original`.
        before: called before each weight is set; may raise to stop.

    Raises:
        UserError: a weight is not finite with its updates.
    """
    folders = [ledger / name for name in names] if ledger else []
    last = folders[-1] if folders and last_only and not combine else None
    groups = [folders] if original else [[folder] for folder in (folders[-1:] if last_only else folders)]
    # read on rank 0 alone
    updates = itertools.chain.from_iterable(summed(group, of=last, combine=combine) for group in groups)
    merged: list[tuple[str, Any]] = []
    while found := broadcast(on_rank_0(ranks, lambda: next(updates, None))):
        before()
        name, (B, A) = found
        fill = original and original(f"{name}.weight")
        add_delta(model.get_submodule(name), B.to(ranks.device), A.to(ranks.device), fill)
        merged.append((f"{name}.weight", model.get_submodule(name).weight))
    if damaged := first_not_finite(merged):
        raise UserError(
            f"{damaged} is not finite with the updates of {', '.join(names)}; use a model.dtype of wider range"
        )


def weights_to_save(
    config: RunConfig,
    source: Source,
    model: PreTrainedModel,
    original: Original | None,
    folders: Sequence[Path] | None,
    combine: Combine | None = None,
) -> tuple[PreTrainedModel, dict[str, torch.Tensor], Iterator[tuple[str, torch.Tensor]]]:
    """Returns (a model with the configuration and names, layout, weights) to save.

    The weights are those of the evaluated model or, for a quantized base with exact merging and without
    merge.save_quantized, the merged weights in model.dtype.

    Args:
        config: the configuration of the run.
        source: its base model.
        model: the model as evaluated.
        original: as for `merge_entries`.
        folders: the entries of the ledger, on rank 0.
        combine: as for `summed`.
    """
    if not original or not config.model.quantization or config.merge.save_quantized:
        return model, weight_layout(model), whole_weights(model)
    in_full = meta_model(source.config, dtype=getattr(torch, config.model.dtype))
    in_full.generation_config = model.generation_config
    layout = checkpoint_tensors(in_full)
    weights = iter(()) if folders is None else merged_weights(layout, original, summed(folders, combine=combine))
    return in_full, layout, weights
