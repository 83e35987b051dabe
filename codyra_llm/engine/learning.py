"""What an engine asks of a kind of data: what it wraps, what a step is, how single rows are passed through."""

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
        """(what to call backward on, a scalar; [1 + KINDS], detached: its part of the loss, divergences) of each pass.

        There are as many on every rank as the engine has accumulation steps. The engine averages gradients over both.
        """

    def mean(self, step: int, summed: float) -> float:
        """The value of a step, in nats, from the sum of its passes' parts over all ranks."""


@dataclass(frozen=True)
class Learning:
    """How a domain is learned.

    Attributes:
        module: makes what an engine wraps, of a model (its `model`) and a method's hooks.
        objective: makes the steps, of an engine around that, batches, ranks and retention.
        passes: makes passes over single rows, of that and what else `ModelPasses` takes.
    """

    module: Callable[..., Any]
    objective: Callable[[Any, GlobalBatches, Ranks, Retention | None], Objective]
    passes: Callable[..., ModelPasses] = ModelPasses


ANSWERS = Learning(AnswerLoss, AnswerObjective)
