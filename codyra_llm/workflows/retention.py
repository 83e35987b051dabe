"""Prepares retention before a task: texts that the model generates, and the directions that these texts use."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import RetentionConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.retention import STATE, Retention, texts_of_state, top_tokens
from codyra_llm.engine.state import TaskState, taken
from codyra_llm.example import Example
from codyra_llm.methods.hooks import of_inputs

LOG = logging.getLogger(__name__)


def prepare_retention(
    config: RetentionConfig,
    batches: GlobalBatches,
    before: Callable[[], AbstractContextManager[ModelPasses]],
    resumed: TaskState | None = None,
) -> tuple[Retention | None, dict[str, torch.Tensor]]:
    """Returns the retention of a task, None if it is off, and the input directions [in_features, count] to protect.

    Args:
        config: the settings of retention.
        batches: the batches of the task.
        before: opens passes over the model before the task.
        resumed: an interrupted task; its texts, and the factor of its weights, are removed from it.
    """
    if not (config.measures or config.protected):
        return None, {}
    state = taken(resumed, STATE)
    texts, protected = texts_of_state(state) if state else [], {}
    known = state["known"].split([len(text) - 1 for text in texts]) if state and config.top_k else ()
    if config.own_text or config.protected:
        with before() as passes:
            if not texts:
                texts = passes.write(config.texts, config.text_length)
                LOG.info(f"the model wrote {len(texts)} texts of {sum(map(len, texts)) / len(texts):.0f} tokens")
            rows = [Example(text[:1], text[1:]) for text in texts]
            if config.top_k and not known:
                known = tuple(passes.outputs(rows, partial(top_tokens, count=config.top_k)))
            if config.protected:
                moments = passes.input_moments(rows)
                protected = leading_directions(moments, config.protected, config.protected_softly)
    retention = Retention(config, texts, batches, known=known)
    if state:
        retention.factor = float(state["factor"])
    return retention, protected


def leading_directions(moments: dict[str, torch.Tensor], share: float, softly: bool = False) -> dict[str, torch.Tensor]:
    """Returns, for each second moment, a share of its eigenvectors [in_features, count], by largest eigenvalues.

    Projections that share a moment share the eigenvectors.

    Args:
        moments: the second moment [in_features, in_features] of each projection's inputs.
        share: the share of eigenvectors.
        softly: return all eigenvectors instead, each times sqrt(e / (e + c)), where e is its eigenvalue and c is the
            smallest eigenvalue in the share.
    """

    def leading(name: str, moment: torch.Tensor) -> torch.Tensor:
        energies, vectors = (part.flip(-1) for part in torch.linalg.eigh(moment.double()))
        count = min(round(share * len(moment)), len(moment) - 1)  # something is left to read
        if softly:
            energies = energies.clamp(min=0)
            end = energies[max(0, count - 1)].clamp(min=torch.finfo(energies.dtype).tiny)
            vectors, count = vectors * (energies / (energies + end)).sqrt(), len(moment)
        return vectors[:, :count].to(moment).contiguous()

    return of_inputs(moments, leading)


@torch.no_grad()
def protect(model: nn.Module, directions: dict[str, torch.Tensor], softly: bool = False) -> None:
    """Makes branches, which start at zero, ignore some input directions; trainable rows of A keep their norms.

    Args:
        model: the model, with branches.
        directions: directions of each projection, from `leading_directions`.
        softly: whether they are those of `leading_directions` with `softly`.
    """
    for name, layer in gated_layers(model) if directions else ():
        blocked = directions[name].to(layer.A)
        if layer.blocked_inputs is not None:
            before = layer.blocked_inputs
            if softly:  # removes what is blocked already
                blocked = blocked - before @ (before.T @ blocked)
            blocked = torch.cat([before, blocked], dim=1)
            if not softly:
                blocked = torch.linalg.qr(blocked)[0]
        layer.blocked_inputs = blocked
        if layer.A.requires_grad:
            free = layer.A - (layer.A @ blocked) @ blocked.T
            layer.A.copy_(free * (layer.A.norm(dim=1) / free.norm(dim=1).clamp(min=1e-12))[:, None])
