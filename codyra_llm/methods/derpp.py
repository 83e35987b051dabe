"""DER++: replays kept rows and distills the logits that they had (arXiv 2004.07211)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import AnswerTokens, RowPasses
from codyra_llm.methods.replay import sample
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, option

if TYPE_CHECKING:
    from codyra_llm.example import Example


@dataclass(frozen=True)
class DERPPSettings:
    """Settings of DER++: how many rows are kept, and the weights of the terms that they add to the loss."""

    fraction: float = option(0.1, "share of each earlier task's rows that is kept; 0: lora", within=FRACTION)
    alpha: float = option(0.5, "weight of the squared distance to the kept logits", within=AT_LEAST_ZERO)
    beta: float = option(1.0, "weight of the kept rows' own loss; 1 with alpha 0: replay", within=AT_LEAST_ZERO)
    logits: int = option(64, "largest logits that are kept of each answer token", within=AT_LEAST_ONE)


class DERPP(Method):
    """CE(own rows) + beta CE(kept rows) + alpha MSE(kept rows' logits, stored logits), over answer tokens.

    Kept rows replace rows of the task in a step, as in replay, so the number of steps is unchanged; both terms use the
    same sample of rows (released: one sample each). Stored logits are those at the end of the row's task (released:
    when the row was sampled), and only the `logits` largest of each token are stored and compared (released, on ten
    classes: all). Kept: "logits.<row>" [answer tokens, 2 x logits], values and then ids, of every kept row in order.
    """

    name = "derpp"
    summary = "DER++: replay whose kept rows keep their logits"
    Settings = DERPPSettings
    needs = Needs(first_task=True)
    _own = 0  # number of the task's own rows; kept rows are numbered after them

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """Returns a seeded sample of each earlier task."""
        seed, fraction = self.config.seed, self.settings.fraction
        return [rows[row] for name, rows in earlier.items() for row in sample(seed, name, len(rows), fraction)]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Counts the task's own rows."""
        self._own = len(rows)

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns (beta - 1) CE + alpha MSE of the kept rows' tokens; the loss already contains their CE."""
        of_kept = tokens.rows >= self._own
        if not of_kept.any():
            return None
        logits, targets = logits[of_kept], tokens.targets[of_kept]
        places = zip(tokens.rows[of_kept].tolist(), tokens.places[of_kept].tolist(), strict=True)
        known = torch.stack([self.kept[f"logits.{row - self._own}"][place] for row, place in places]).to(logits)
        again = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return (self.settings.beta - 1) * again + self.settings.alpha * distance(logits, known)

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Stores the logits of the rows that later tasks will replay."""
        drawn = sample(self.config.seed, self.task, len(rows), self.settings.fraction)
        first = len(self.kept)
        for number, found in enumerate(passes.outputs([rows[row] for row in drawn], self._largest)):
            self.kept[f"logits.{first + number}"] = found

    def _largest(self, logits: torch.Tensor) -> torch.Tensor:
        values, ids = logits.topk(min(self.settings.logits, logits.shape[-1]))
        return torch.cat([values, ids.to(values)], dim=-1)


def distance(logits: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared distance of each token's logits to the known ones, summed over tokens.

    Args:
        logits: [tokens, vocabulary].
        known: [tokens, 2 x logits], values and then ids.
    """
    values, ids = known.chunk(2, dim=-1)
    return (logits.gather(-1, ids.long()) - values).square().mean(dim=-1).sum()
