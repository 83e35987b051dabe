"""Materializes a ledger as an ordinary HF folder: the base weights plus the selected share of each entry.

Weights are copied one by one from the base model's files to the new ones, so memory does not grow with the model.
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
    """Writes the merged model; with the run's dtype and quantization it is bit-identical to the one that the run saved.

    Args:
        folder: the folder of the ledger.
        ledger: its content.
        shares: {entry: its share}, as returned by `selection.select`.
        output: the new folder.
        base: where the base model is; None: the name that the run used.
        dtype: of the weights; None: that of the run.
        quantization: "nf4" or "int8": the projections are quantized, one after another; None: none is.

    Raises:
        UserError: the base model is a different one, does not match the entries or cannot be read in parts; the output
            folder already exists, or cannot be written. Nothing is left in its place then.
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
    if quantization:  # in fp32, so that weights are not rounded to dtype before they are quantized
        layout |= {f"{name}.weight": layout[f"{name}.weight"].float() for name in quantized_names(model)}
        quantize_structure(model, quantization)
        weights = quantized_tensors(model, merged_weights(layout, original, updates))
        save_model(model, None, weights, tokenizer, output, _card(ledger, shares), base=source.path)
    else:
        weights = merged_weights(layout, original, updates)
        save_model(model, layout, weights, tokenizer, output, _card(ledger, shares), base=source.path)


def check_shapes(where: Path, updated: Mapping[str, tuple[int, int]], layout: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError if the model lacks an updated projection, or has it in a different shape.

    Args:
        where: the path that the error names.
        updated: (out_features, in_features) of each updated projection.
        layout: the model's weights.
    """
    for module, shape in updated.items():
        weight = layout.get(f"{module}.weight")
        if weight is None or weight.shape != shape:
            found = "no such projection" if weight is None else f"one of {list(weight.shape)}"
            raise UserError(f"{where}: has an update of {list(shape)} for {module}; the base model has {found}")


def check_fit(folder: Path, ledger: Ledger, base: str | None) -> None:
    """Reads every entry completely, and checks it against the base model.

    Args:
        folder: the folder of the ledger.
        ledger: its content.
        base: where the base model is; None: the name that the run used.

    Raises:
        UserError: the base model is a different one, or an entry does not match it or is not a valid update.
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
