"""Tiny random models of each architecture, built from configs."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

COMMON: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON, tie_word_embeddings=False),
    "gemma": lambda: GemmaConfig(**COMMON),
    "gemma2": lambda: Gemma2Config(**COMMON, query_pre_attn_scalar=8, sliding_window=16, final_logit_softcapping=5.0),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, query_pre_attn_scalar=8, sliding_window=16),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=16),
    "qwen3": lambda: Qwen3Config(**COMMON),
}


# changes to COMMON: rows that NF4 can quantize in whole blocks of 64
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def tiny_model(
    architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: int
) -> PreTrainedModel:
    """Returns a random model of two layers whose answers differ between prompts; `changes` update its configuration."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model
