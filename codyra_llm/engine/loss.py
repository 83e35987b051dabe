"""The loss of a causal model at answer positions only: nothing else of the vocabulary's width is ever computed."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codyra_llm.data.batches import IGNORED

# Logits held at once, fp32: 106 tokens of a vocabulary of 49k, 20 of one of 256k. Their gradient and softmax take
# about as much each, and what fits at once is not computed a second time.
LOGITS_BYTES = 20 * 2**20


class AnswerLoss(nn.Module):
    """The summed negative log-likelihood of the answers of a batch, as a module that an engine can wrap.

    Args:
        model: a causal LM of transformers; its decoder runs over all positions, its head over answer positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """input_ids, labels, position_ids [rows, tokens] as a MicroBatch has them -> a scalar in nats, fp32."""
        decoder = self.model.get_decoder()
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        at_answer = targets != IGNORED
        return summed_loss(self.model, hidden[:, :-1][at_answer], targets[at_answer])


def summed_loss(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over tokens; logits that do not fit at once are computed in chunks.

    A chunk's logits are computed again in the backward pass, so that only one chunk's are held at any time.

    Args:
        model: whose head is used. hidden: [tokens, hidden_size]. targets: [tokens], ids.
    """

    def loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(answer_logits(model, hidden), targets, reduction="sum")

    tokens = logits_at_once(model)
    if len(targets) <= tokens:
        return loss(hidden, targets)
    chunks = zip(hidden.split(tokens), targets.split(tokens), strict=True)
    return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


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
