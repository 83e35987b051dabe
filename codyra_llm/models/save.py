"""Saving a finished model as an ordinary HF folder that needs nothing of ours to load."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.errors import UserError


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str) -> None:
    """Config, safetensors, tokenizer, generation config and model card; written beside and renamed.

    The weights must be whole on this rank.

    Raises:
        UserError: the folder cannot be written.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved: {error.strerror or error}") from None
