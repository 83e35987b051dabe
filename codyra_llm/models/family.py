"""What class of transformers a model is, by its configuration: a causal language model, or CLIP's two towers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings


def model_class(config: PretrainedConfig) -> Any:
    """The class of transformers that builds and loads a model of this configuration."""
    return AutoModelForZeroShotImageClassification if is_two_towers(config) else AutoModelForCausalLM


def is_two_towers(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of CLIP: an image tower and a text tower with a common space of features."""
    return isinstance(config, CLIPConfig)


def hold_scalars(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose parameters without a dimension (CLIP's `logit_scale`) have become buffers of the same name.

    DeepSpeed cannot hold such a parameter at stage 0. Files name it as before.
    """
    for module in model.modules():
        for name, scalar in list(module.named_parameters(recurse=False)):
            if scalar.ndim == 0:
                delattr(module, name)
                module.register_buffer(name, _as_buffer(scalar))
    return model


def read_by_parents(model: nn.Module) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """(module, weight of one of its children) where a module reads such a weight itself, if only its shape."""
    for module in model.modules():
        if isinstance(module, CLIPTextEmbeddings):
            yield module, module.position_embedding.weight


def _as_buffer(scalar: nn.Parameter) -> torch.Tensor:
    """A tensor of its own. Of a scalar on the meta device, it lies where tensors are made, and can be filled there."""
    if scalar.is_meta:
        return torch.empty((), dtype=scalar.dtype)
    return scalar.detach().clone()
