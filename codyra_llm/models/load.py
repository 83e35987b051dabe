"""Loading LLaMA, Gemma and their kin from a hub id, an HF folder, a GGUF file, or the built-in small model."""

from typing import Any

import torch
from safetensors import SafetensorError
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
from codyra_llm.files import expand
from codyra_llm.models.gguf import BUILTIN, builtin_model_folder, folder_of_gguf


def resolve_model(name_or_path: str) -> str:
    """What transformers can load: the built-in model and GGUF files become cached HF folders, the rest stays."""
    if name_or_path == BUILTIN:
        return str(builtin_model_folder())
    if name_or_path.endswith(".gguf"):
        return str(folder_of_gguf(expand(name_or_path)))
    return name_or_path


def load_config_and_tokenizer(name_or_path: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The parts of a model that are cheap to read, so that mistakes show before any weight is loaded.

    Raises:
        UserError: nothing of that name, or not a causal language model.
    """
    source = resolve_model(name_or_path)
    try:
        config = AutoConfig.from_pretrained(source)
        check_causal(config, name_or_path)
        return config, AutoTokenizer.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise many types, some of them their own
        hint = f"give a hub id, an HF folder, a .gguf file or {BUILTIN}"
        raise UserError(f"model.name_or_path {name_or_path}: {_reason(error)}; {hint}") from None


def check_causal(config: PretrainedConfig, name: str) -> None:
    """Raises UserError where a configuration is not that of a causal language model."""
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


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's modules on the meta device: its structure, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_model(name_or_path: str, dtype: str = "float32", attn_implementation: str | None = None) -> PreTrainedModel:
    """The weights, on CPU, in evaluation mode and in `dtype`.

    Raises:
        UserError: the weights are missing or damaged, or `attn_implementation` is not to be had.
    """
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    options |= {"dtype": getattr(torch, dtype), "low_cpu_mem_usage": True, "output_loading_info": True}
    source = resolve_model(name_or_path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        chosen = "" if attn_implementation is None else f" with model.attn_implementation {attn_implementation}"
        raise UserError(f"model.name_or_path {name_or_path}: cannot be loaded{chosen}: {_reason(error)}") from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"model.name_or_path {name_or_path}: {len(missing)} weights are missing, {missing[0]} the first; "
            "give a complete model"
        )
    return model.eval()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300] or type(error).__name__
