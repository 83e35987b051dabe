"""Validation: the loss on held-out rows at intervals, from which early stopping and the best step follow."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from codyra_llm.config import TrainConfig
from codyra_llm.distributed.ranks import Ranks, broadcast
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.state import trainable
from codyra_llm.example import Example

BEST = "best."  # prefix of the names of the best step's tensors in a checkpoint


@dataclass
class Validation:
    """The validation of one task.

    Attributes:
        rows: the rows on which the loss is measured.
        train: the training settings.
        losses: (optimizer steps done, mean loss per answer token in nats), including those before a resumption.
        best: with `train.keep_best`, the trainable parameters of the best step, whole; on rank 0.
    """

    rows: Sequence[Example]
    train: TrainConfig
    losses: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_step(self) -> int | None:
        """The number of steps done when the loss was lowest."""
        return min(self.losses, key=lambda found: found[1])[0] if self.losses else None

    @property
    def stops(self) -> bool:
        """True if the loss has not improved for `train.early_stopping` validations."""
        patience = self.train.early_stopping
        if not patience or not self.losses:
            return False
        return sum(step > (self.best_step or 0) for step, _ in self.losses) >= patience

    def is_due(self, done: int, total: int) -> bool:
        """True if there is a validation after `done` of `total` steps."""
        return done % self.train.validate_every == 0 or done == total

    def measure(self, done: int, passes: ModelPasses, size: int, ranks: Ranks) -> float:
        """Measures and records the loss after `done` steps, the same on every rank; every rank must call it.

        Args:
            done: optimizer steps done.
            passes: passes over the model in an engine.
            size: rows of a forward pass.
            ranks: the ranks that share the rows.
        """
        order = sorted(self.rows, key=len)
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        passes.loss.eval()
        with passes.apart(), torch.no_grad():
            for first in range(0, len(batches), ranks.size):  # at stage 3 every rank must take part in every pass
                number = first + ranks.rank
                loss = passes.nll(batches[min(number, len(batches) - 1)])
                if number < len(batches):
                    total += loss.double()
        passes.loss.train()
        dist.all_reduce(total)
        found = float(total) / sum(row.learned for row in self.rows)
        self.losses.append((done, found))
        return found

    def restore_best(self, model: torch.nn.Module) -> None:
        """Copies the best step's parameters to a model whose branches are whole again; every rank must call it."""
        best: dict[str, torch.Tensor] = broadcast(self.best)
        with torch.no_grad():
            for name, parameter, _ in trainable(model):
                parameter.copy_(best[name])
