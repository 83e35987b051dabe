"""The transformers class of a model, by its configuration: a causal language model, or CLIP with its two towers."""

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
    """Returns the auto class of transformers that builds and loads a model of this configuration."""
    return AutoModelForZeroShotImageClassification if is_two_towers(config) else AutoModelForCausalLM


def is_two_towers(config: PretrainedConfig) -> bool:
    """True if a configuration is that of CLIP: an image tower and a text tower with a common feature space."""
    return isinstance(config, CLIPConfig)


def hold_scalars(model: PreTrainedModel) -> PreTrainedModel:
    """Replaces parameters without a dimension (CLIP's `logit_scale`) by buffers of the same name, in place.

    DeepSpeed does not support such a parameter at stage 0. Its name in files does not change.
    """
    for module in model.modules():
        for name, scalar in list(module.named_parameters(recurse=False)):
            if scalar.ndim == 0:
                delattr(module, name)
                module.register_buffer(name, _as_buffer(scalar))
    return model


def read_by_parents(model: nn.Module) -> Iterator[tuple[nn.Module, torch.Tensor]]:
    """Yields (module, weight of one of its children) for modules that access such a weight directly, or its shape."""
    for module in model.modules():
        if isinstance(module, CLIPTextEmbeddings):
            yield module, module.position_embedding.weight


def _as_buffer(scalar: nn.Parameter) -> torch.Tensor:
    """Returns a separate copy of a scalar; for one on the meta device, an empty tensor on the default device."""
    if scalar.is_meta:
        return torch.empty((), dtype=scalar.dtype)
    return scalar.detach().clone()
