"""A ledger as a model: the base weights plus the wanted share of each entry, an ordinary HF folder.

Weights go one by one from the base model's files to the new ones, so memory does not grow with the model.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from codyra_llm.engine.malloc import return_large_blocks
from codyra_llm.errors import UserError, reason
from codyra_llm.ledger.combination import combination
from codyra_llm.ledger.entry import read_entry, shapes, summed
from codyra_llm.ledger.ledger import FILE, Ledger, check_base
from codyra_llm.ledger.weights import merged_weights
from codyra_llm.models.load import meta_model, original_weights, read_generation_config
from codyra_llm.models.quantize import quantize_structure, quantized_names, quantized_tensors
from codyra_llm.models.save import save_model
from codyra_llm.models.shards import checkpoint_tensors
from codyra_llm.models.source import check_any, open_source


def materialize(
    folder: Path,
    ledger: Ledger,
    shares: Mapping[str, float],
    output: Path,
    base: str | None,
    dtype: str | None,
    quantization: str | None = None,
) -> None:
    """Writes the model that the entries give; in the run's dtype and quantization, with the bits that the run saved.

    Args:
        folder: where the ledger lies. shares: {entry: share of it}, as `Ledger.select` gives it.
        output: the new folder.
        base: where the base model is; by default what the run called it. dtype: by default the run's.
        quantization: "nf4" or "int8": the projections are quantized, one after another; by default none is.

    Raises:
        UserError: the base model is another, does not fit the entries or cannot be read in parts; the output folder is
            there already, or cannot be written. Nothing is left in its place then.
    """
    return_large_blocks()
    dtype = dtype or ledger.base_model.dtype
    if output.exists():
        raise UserError(f"{output}: already exists; name a new folder")
    source = open_source(base or ledger.base_model.name, check=check_any)
    tokenizer = source.tokenizer
    check_base(ledger, source)
    try:
        original = original_weights(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source.name}: the weights cannot be read in parts: {reason(error)}; save it as safetensors"
        ) from None
    model = meta_model(source.config, dtype=getattr(torch, dtype))
    try:
        read_generation_config(source, model)
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from None
    layout, folders = checkpoint_tensors(model), [folder / entry for entry in shares]
    for entry in folders:
        check_shapes(entry, shapes(entry), layout)

    combine = combination(ledger.combined, str(folder / FILE))
    updates = summed(folders, shares=list(shares.values()), combine=combine)
    if quantization:  # what is quantized is not rounded before
        layout |= {f"{name}.weight": layout[f"{name}.weight"].float() for name in quantized_names(model)}
        quantize_structure(model, quantization)
        weights = quantized_tensors(model, merged_weights(layout, original, updates))
        save_model(model, None, weights, tokenizer, output, _card(ledger, shares), base=source.path)
    else:
        weights = merged_weights(layout, original, updates)
        save_model(model, layout, weights, tokenizer, output, _card(ledger, shares), base=source.path)


def check_shapes(where: Path, updated: Mapping[str, tuple[int, int]], layout: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError where there is an update for a projection that the model has not, or has in another shape.

    Args:
        where: named in the error. updated: (out_features, in_features) of each projection. layout: the model's weights.
    """
    for module, shape in updated.items():
        weight = layout.get(f"{module}.weight")
        if weight is None or weight.shape != shape:
            found = "no such projection" if weight is None else f"one of {list(weight.shape)}"
            raise UserError(f"{where}: has an update of {list(shape)} for {module}; the base model has {found}")


def check_fit(folder: Path, ledger: Ledger, base: str | None) -> None:
    """Reads every entry whole; `base`: where the base model is.

    Raises:
        UserError: the base model is another, an entry does not fit it, or holds what is no update.
    """
    source = open_source(base or ledger.base_model.name, check=check_any)
    check_base(ledger, source)
    layout = checkpoint_tensors(meta_model(source.config))
    for entry in ledger.entries:
        updates = read_entry(folder / entry.name)
        check_shapes(folder / entry.name, {name: (len(B), A.shape[1]) for name, (B, A) in updates.items()}, layout)


def _card(ledger: Ledger, shares: Mapping[str, float]) -> str:
    used = "\n".join(f"- {name}" + ("" if share == 1 else f", at {share:g}") for name, share in shares.items())
    used = "\n\n".join(filter(None, [used, ledger.remark(shares)]))
    return f"""---
base_model: {ledger.base_model.name}
library_name: transformers
pipeline_tag: text-generation
tags: [continual-learning, codyra]
---
# {ledger.base_model.name} plus {len(shares)} of {len(ledger.entries)} updates

Made from a ledger of low-rank updates (state `{ledger.state[:12]}`): the base model (weights
`{ledger.base_model.sha256[:12]}`) plus

{used or "nothing"}

Nothing but transformers is needed to use it. The terms of the base model and of the data apply.
"""
