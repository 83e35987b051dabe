"""Controls of CoDyRA: LoRA with fewer components, at random, by magnitude, or with the ranks of another run."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.errors import UserError
from codyra_llm.files import expand
from codyra_llm.methods.base import Method
from codyra_llm.options import FRACTION, option
from codyra_llm.ranks import read_kept_ranks

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig


@dataclass(frozen=True)
class PrunedSettings:
    """Settings of the control: how many components are kept, and which."""

    keep: float = option(0.5, "share of each branch's components that stays; 1: lora", within=FRACTION)
    by: Literal["random", "magnitude", "start"] = option(
        "random",
        "when the task ends, those drawn by the seed (random) or of largest |B_k| |A_k| (magnitude) stay; start: "
        "branches begin with no others, and with one at least",
    )
    ranks_of: str | None = option(
        None, "run folder whose ranks are kept, in the place of a share: of each projection, in each task"
    )
    shift: int = option(0, "1: each task gets the ranks of the one after it, the last those of the first; and so on")


class Pruned(Method):
    """Fixed-rank LoRA whose components are dropped: the effect of pruning alone, without CoDyRA's gates.

    With the ranks that a run of CoDyRA kept (`ranks_of`), `start` and `random` measure the effect of their distribution
    over projections without CoDyRA's choice of components, and `shift` that of another task's distribution.
    """

    name = "pruned"
    summary = "control: LoRA that drops components at random or by magnitude, or has the ranks of another run"
    Settings = PrunedSettings
    trains_gates = True

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        self._ranks: dict[str, dict[str, float]] = {}  # kept ranks of `ranks_of`, by task and projection

    def check_run(self, zero_stage: int) -> None:
        """Checks the run as the base class does, and reads the ranks of `ranks_of`."""
        super().check_run(zero_stage)
        if self.settings.ranks_of:
            self._read_ranks(self.settings.ranks_of)

    def check(self, task: str, total_steps: int) -> None:
        """Raises UserError if the run `ranks_of` has no ranks of the task."""
        if self.settings.ranks_of:
            self._ranks_of(task)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Removes components with `by: start`; at least one is kept."""
        if self.settings.by == "start":
            _cut(layer, max(1, self._kept(name, layer.rank)))

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Removes components with `by: start`; with the ranks of another run it assumes the full rank."""
        if self.settings.by == "start" and not self.settings.ranks_of:
            _cut(layer, max(1, round(self.settings.keep * layer.rank)))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Sets the gates of dropped components to zero, then finishes as the base class."""
        with torch.no_grad():
            for name, layer in gated_layers(model) if self.settings.by != "start" else ():
                dropped = layer.rank - self._kept(name, layer.rank)
                order = torch.argsort(self._worth(name, *layer.factors()), stable=True)
                layer.gate[order[:dropped]] = 0
        return super().finish(model)

    def _kept(self, name: str, rank: int) -> int:
        if not self.settings.ranks_of:
            return round(self.settings.keep * rank)
        return min(rank, int(self._ranks_of(self.task).get(name, 0)))

    def _ranks_of(self, task: str) -> dict[str, float]:
        if not self._ranks:
            self._read_ranks(str(self.settings.ranks_of))
        tasks = list(self._ranks)
        if task not in tasks:
            raise UserError(f"pruned.ranks_of {self.settings.ranks_of}: has no ranks of task {task}")
        return self._ranks[tasks[(tasks.index(task) + self.settings.shift) % len(tasks)]]

    def _read_ranks(self, folder: str) -> None:
        where = f"pruned.ranks_of {folder}: its ranks.csv"
        self._ranks = read_kept_ranks(expand(folder), where, "name the folder of a finished run")

    def _worth(self, name: str, B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        """Returns the worth of each component, [rank]; those of smallest worth are dropped."""
        if self.settings.by == "magnitude":
            return B.norm(dim=0) * A.norm(dim=1)
        draw = random.Random(f"{self.config.seed}/pruned/{self.task}/{name}")
        return torch.tensor([draw.random() for _ in range(len(A))])


def _cut(layer: CoDyRALinear, rank: int) -> None:
    layer.A = nn.Parameter(layer.A[:rank].clone())
    layer.B = nn.Parameter(layer.B[:, :rank].clone())
    layer.gate = nn.Parameter(layer.gate[:rank].clone(), requires_grad=False)
