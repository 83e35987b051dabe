"""Loading LLaMA, Gemma and their kin from a hub id, an HF folder, a GGUF file, or the built-in small model."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from codyra_llm.errors import UserError
from codyra_llm.models.gguf import BUILTIN, builtin_model_folder, folder_of_gguf


def resolve_model(name_or_path: str) -> str:
    """What transformers can load: the built-in model and GGUF files become cached HF folders, the rest stays."""
    if name_or_path == BUILTIN:
        return str(builtin_model_folder())
    if name_or_path.endswith(".gguf"):
        return str(folder_of_gguf(Path(name_or_path).expanduser()))
    return name_or_path


def load_config_and_tokenizer(name_or_path: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The parts of a model that are cheap to read, so that mistakes show before any weight is loaded.

    Raises:
        UserError: nothing of that name, or not a causal language model.
    """
    source = resolve_model(name_or_path)
    try:
        config = AutoConfig.from_pretrained(source)
        _check_causal(config, name_or_path)
        return config, AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        raise UserError(
            f"model.name_or_path {name_or_path}: {reason}; give a hub id, an HF folder, a .gguf file or {BUILTIN}"
        ) from None


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's modules on the meta device: its structure, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_model(name_or_path: str, dtype: str = "float32", attn_implementation: str | None = None) -> PreTrainedModel:
    """The weights, on CPU, in evaluation mode and in `dtype`."""
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model(name_or_path), dtype=getattr(torch, dtype), low_cpu_mem_usage=True, **options
    )
    return model.eval()


def _check_causal(config: PretrainedConfig, name: str) -> None:
    architectures = config.architectures or []
    if architectures:
        causal = any(architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for architecture in architectures)
    else:
        causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if not causal:
        kind = architectures[0] if architectures else type(config).__name__
        raise UserError(
            f"model.name_or_path {name}: {kind} is not a causal language model; use one like LlamaForCausalLM"
        )
