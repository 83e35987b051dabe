"""Logits of hidden states: the model's head, and what it does to logits after it."""

import torch
from transformers import PreTrainedModel

# Logits held at once, fp32: 106 tokens of a vocabulary of 49k, 20 of one of 256k. Their gradient and softmax take
# about as much each, and what fits at once is not computed a second time.
LOGITS_BYTES = 20 * 2**20


def logits_at_once(model: PreTrainedModel) -> int:
    """For how many tokens logits are held at once."""
    return max(1, LOGITS_BYTES // (4 * model.config.get_text_config().vocab_size))


def answer_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own logits, fp32, of hidden states [tokens, hidden_size] -> [tokens, vocabulary]."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float()
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap  # Gemma 2 caps them
