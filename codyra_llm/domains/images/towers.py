"""CLIP's two towers: pictures and prompts as unit features."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from codyra_llm.engine.loss import Term
from codyra_llm.methods.hooks import NO_HOOKS, Hooks, overrides


class Features(nn.Module):
    """Computes the unit features of pictures and prompts, as a module that an engine can wrap.

    Args:
        model: a CLIPModel.
        hooks: the method's hooks; the loss adds their term on the outputs (`term`).
    """

    def __init__(self, model: PreTrainedModel, hooks: Hooks = NO_HOOKS) -> None:
        super().__init__()
        self.model: Any = model
        self.hooks = hooks
        self.term: Term | None = hooks.output_loss if overrides(hooks, "output_loss") else None

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[pictures, 3, size, size], [prompts, tokens] -> unit features [pictures, d], [prompts, d], fp32."""
        return image_features(self.model, pixels), text_features(self.model, ids)


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[pictures, 3, size, size] -> [pictures, d], fp32, of length one."""
    pooled = model.vision_model(pixel_values=pixels.to(model.dtype)).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def text_features(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[prompts, tokens], padded after the EOS token -> [prompts, d], fp32, of length one."""
    return functional.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output).float(), dim=-1)


def padded(prompts: Any, end: int) -> torch.Tensor:
    """[prompts, tokens]: prompts with their EOS tokens, right-padded with the EOS token."""
    longest = max(map(len, prompts))
    return torch.tensor([[*prompt, *[end] * (longest - len(prompt))] for prompt in prompts])
