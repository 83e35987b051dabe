"""Saving a finished model as an ordinary HF folder that needs nothing of ours to load."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.errors import UserError
from codyra_llm.files import replace_folder
from codyra_llm.models.shards import names_in_files, set_aside, write_shards

LARGEST_FILE = 5_000_000_000  # bytes


def save_model(
    model: PreTrainedModel,
    layout: Mapping[str, torch.Tensor] | None,
    weights: Iterable[tuple[str, torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    largest_file: int = LARGEST_FILE,
) -> None:
    """Config, safetensors, tokenizer, generation config and model card; written beside and renamed.

    Args:
        model: asked for its configuration and names only.
        layout, weights, largest_file: as for `write_shards`; without a layout, the weights go through a file first.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with replace_folder(folder) as scratch:
            if layout is None:
                layout, weights = set_aside(scratch, weights)
            names = names_in_files(model, layout)
            renamed = ((names[name], weight) for name, weight in weights)
            write_shards(scratch, {names[name]: layout[name] for name in layout}, renamed, largest_file)
            model.config.dtype = str(model.dtype).removeprefix("torch.")
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(scratch)
            if model.can_generate():
                model.generation_config.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            (scratch / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved: {error.strerror or error}") from None
