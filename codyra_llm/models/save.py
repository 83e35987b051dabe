"""Saves a finished model as an ordinary HF folder, which can be loaded without this package."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from codyra_llm.errors import UserError
from codyra_llm.files import full_disk, replace_folder
from codyra_llm.models.folder import copy_companions, weight_files
from codyra_llm.models.load import meta_model
from codyra_llm.models.shards import ShardReader, checkpoint_tensors, names_in_files, set_aside, write_shards
from codyra_llm.models.source import load_config

LARGEST_FILE = 5_000_000_000  # bytes


def save_model(
    model: PreTrainedModel,
    layout: Mapping[str, torch.Tensor] | None,
    weights: Iterable[tuple[str, torch.Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    largest_file: int = LARGEST_FILE,
    base: str | None = None,
) -> None:
    """Writes config, safetensors, tokenizer, generation config and model card to a temporary folder, and renames it.

    The generation config ends answers where evaluation does: at the tokenizer's EOS token and at those of the base.
    The names and shapes of the written weights are checked against the configuration, unless the model is quantized.

    Args:
        model: only its configuration, generation config and names are used.
        layout, weights, largest_file: as for `write_shards`; without a layout, weights are first written to a temporary
            file.
        tokenizer: of the model.
        folder: the folder to write.
        card: text of the model card.
        base: the folder or hub id of the base model; its companion files (license, tokenizer.model) are copied.

    Raises:
        UserError: the folder cannot be written, or the written weights do not match the configuration.
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
                _write_generation_config(model, tokenizer, scratch)
            tokenizer.save_pretrained(scratch)
            if base:
                copy_companions(base, scratch)
            (scratch / "README.md").write_text(card, encoding="utf-8")
            _check_names(scratch)
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved: {error.strerror or error}") from None
    except Exception as error:
        if not full_disk(error):  # tokenizers (Rust) raises a plain Exception for a full disk
            raise
        raise UserError(f"{folder}: the model cannot be saved: No space left on device") from None


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the ids that end an answer: the tokenizer's EOS token, which training appends, and the model's own."""
    of_generation = getattr(model, "generation_config", None)
    of_model = of_generation.eos_token_id if of_generation else None
    return {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])} - {None}


def add_end_ids(model: PreTrainedModel, ids: Iterable[int]) -> None:
    """Adds ids to the EOS ids of a model's generation config, which is saved with the model."""
    config = getattr(model, "generation_config", None)  # a model that cannot generate has none
    if config and (added := set(ids)):
        own = config.eos_token_id
        config.eos_token_id = sorted(added | {*(own if isinstance(own, list) else [own])} - {None})


def _write_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    config = copy.deepcopy(model.generation_config)
    ends = sorted(end_ids(model, tokenizer))
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    # not save_pretrained, which rejects combinations of published models for which generate only warns
    config.to_json_file(folder / GENERATION_CONFIG_NAME)


def _check_names(folder: Path) -> None:
    """Raises UserError if names or shapes of the weights in a folder do not match its configuration."""
    model = meta_model(load_config(str(folder)))
    if getattr(model.config, "quantization_config", None):
        return  # bitsandbytes names the parts of each weight
    layout, found = checkpoint_tensors(model), ShardReader(weight_files(str(folder))).shapes
    names = names_in_files(model, layout)
    expected = {names[name]: tensor.shape for name, tensor in layout.items()}
    if expected != found:
        first = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(f"{folder}: {first} was not written as the configuration has it; nothing was saved")
