"""The loss of a causal model at answer positions only: nothing else of the vocabulary's width is ever computed."""

import torch
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.data.batches import IGNORED


class AnswerLoss(nn.Module):
    """The summed negative log-likelihood of the answers of a batch, as a module that an engine can wrap.

    Args:
        model: a causal LM of transformers; its decoder runs over all positions, its head over answer positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """input_ids, labels [rows, tokens] (right-padded, IGNORED but at answer tokens) -> a scalar in nats, fp32."""
        hidden = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        at_answer = targets != IGNORED
        logits = answer_logits(self.model, hidden[:, :-1][at_answer])
        return nn.functional.cross_entropy(logits, targets[at_answer], reduction="sum")


def answer_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own logits, fp32, of hidden states [tokens, hidden_size] -> [tokens, vocabulary]."""
    logits = model.get_output_embeddings()(hidden).float()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap  # Gemma 2 caps them
