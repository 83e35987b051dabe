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
        return self.token_losses(input_ids, labels).sum()

    def token_losses(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[answer tokens] losses in nats, fp32, row after row."""
        hidden = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        at_answer = targets != IGNORED
        logits = self.model.get_output_embeddings()(hidden[:, :-1][at_answer]).float()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap is not None:  # Gemma 2
            logits = torch.tanh(logits / softcap) * softcap
        return nn.functional.cross_entropy(logits, targets[at_answer], reduction="none")
