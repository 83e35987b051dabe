"""The interface between an engine and a kind of data: the wrapped module, the steps, and passes over single rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.engine.loss import AnswerLoss, AnswerObjective
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.retention import Retention


class Objective(Protocol):
    """The optimizer steps of a task in an engine, as passes of this rank."""

    def passes(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (scalar to call backward on; [1 + KINDS], detached: its part of the loss, divergences) for each pass.

        Every rank has as many passes as the engine has accumulation steps. The engine averages gradients over both.
        """

    def mean(self, step: int, summed: float) -> float:
        """Returns the mean loss of a step, in nats, from the sum of its passes' losses over all ranks."""


@dataclass(frozen=True)
class Learning:
    """The training interface of a domain.

    Attributes:
        module: makes the module that an engine wraps, from a model (its attribute `model`) and a method's hooks.
        objective: makes the steps, from an engine around that module, batches, ranks and retention.
        passes: makes passes over single rows, from that module and the other arguments of `ModelPasses`.
    """

    module: Callable[..., Any]
    objective: Callable[[Any, GlobalBatches, Ranks, Retention | None], Objective]
    passes: Callable[..., ModelPasses] = ModelPasses


ANSWERS = Learning(AnswerLoss, AnswerObjective)
