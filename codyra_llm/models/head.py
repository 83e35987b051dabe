"""Logits of hidden states: the model's head, with the scaling and capping of logits after it."""

import torch
from transformers import PreTrainedModel

# Largest size of logits in memory, fp32: 106 tokens with a vocabulary of 49k, 20 with one of 256k. Their gradient and
# softmax take about as much each, and logits that fit are not recomputed.
LOGITS_BYTES = 20 * 2**20


def logits_at_once(model: PreTrainedModel) -> int:
    """Returns the number of tokens whose logits are in memory at the same time."""
    return max(1, LOGITS_BYTES // (4 * model.config.get_text_config().vocab_size))


def answer_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Returns the model's logits, fp32, of hidden states: [tokens, hidden_size] -> [tokens, vocabulary]."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap  # Gemma 2 caps them
