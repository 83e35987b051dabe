"""TreeLoRA: one adapter that is pulled toward the A of earlier tasks, chosen by a bandit (arXiv 2506.10355)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.methods.base import Prepared
from codyra_llm.methods.hooks import Penalty
from codyra_llm.methods.seqlora import SeqLoRA
from codyra_llm.options import AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig

PAST, SUM = "past/", "sum/"  # prefixes of a projection's name in `kept` and in `gathered`
LARGEST = 1.5  # largest factor that a subtree's scores are multiplied by at one split


@dataclass(frozen=True)
class TreeLoRASettings:
    """Settings of the pull toward earlier tasks."""

    strength: float = option(0.5, "weight of the term at the end of a task; 0: seqlora", within=AT_LEAST_ZERO)
    repaired: bool = option(False, "whether nearer tasks are the likelier, and every pull is toward them")


class TreeLoRA(SeqLoRA):
    """SeqLoRA with L - L' strength (s/R) rho / (rho' + 1e-5), rho = -sum over projections of <A, v_k>, v_k of task k.

    L' and rho' have no gradient; s is the current step of R steps. v_k is the sum of A over task k's steps, times the
    number of projections divided by R. In each step one task is drawn for each projection: by the L1 distances of the
    running sum of A from the v_k drawn so far, with the confidence bonus of a bandit, along a tree (`split`) with one
    level for each projection.

    Two properties follow the released code although they contradict the paper's intent: farther tasks are more likely,
    and since rho / rho' is one, A is pulled toward v_k where the sum of <A, v_k> is positive and away from it
    otherwise. `repaired` corrects both. Differences from the released code: L' is the loss of the previous step, the
    same on all ranks; draws depend on (seed, task, step) and are also the same on all ranks; s counts through all
    epochs. Kept: SeqLoRA's A and B, and "past/<projection>" [tasks, rank, in_features].
    """

    name = "treelora"
    summary = "TreeLoRA: seqlora whose A is pulled toward those of earlier tasks, drawn along a tree"
    Settings = TreeLoRASettings

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        self._steps = 0

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Prepared:
        """Prepares the task as SeqLoRA does, and stores its number of steps."""
        self._steps = total_steps
        return super().prepare(model, task, total_steps)

    def end_step(self, loss: float) -> None:
        """Stores the loss as L' of the next step."""
        self.gathered["loss"] = torch.tensor(loss, dtype=torch.float64)

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns the value of the term and its gradient for A; updates the running sums and the bandit."""
        gathered, names = self.gathered, list(branches)
        step = int(gathered.get("step", 0))
        gathered["step"] = torch.tensor(step + 1)
        for name, (_, A) in branches.items():
            gathered[SUM + name] = gathered.get(SUM + name, torch.zeros_like(A)).to(A) + len(names) / self._steps * A
        past = [self.kept[PAST + name] for name in names if PAST + name in self.kept]
        if not past or not self.settings.strength:
            return 0.0, {}
        drawn = self._draw(step, past)
        for number, (name, task) in enumerate(zip(names, drawn, strict=True)):
            apart = (gathered[SUM + name].cpu() - past[number][task]).abs().sum()
            gathered["distances"][task, number] += apart
            gathered["draws"][task, number] += 1
        vectors = [of_task[task] for of_task, task in zip(past, drawn, strict=True)]
        weight = float(gathered.get("loss", 0)) * self.settings.strength * step / self._steps
        value, gradients = pull([A for _, A in branches.values()], vectors, weight, self.settings.repaired)
        return value, {f"{name}.A": gradient for name, gradient in zip(names, gradients, strict=True)}

    def _draw(self, step: int, past: Sequence[torch.Tensor]) -> list[int]:
        """Draws a task for each projection."""
        shape = (len(past[0]), len(past))
        for name in ("distances", "draws"):
            self.gathered.setdefault(name, torch.zeros(shape, dtype=torch.float64))
        draws = self.gathered["draws"].clamp(min=1)
        nearness = -self.gathered["distances"] / draws
        bonus = math.sqrt(math.log(2 * self._steps * (step + 1) * (step + 2))) / (2 * draws).sqrt()
        scores = nearness + bonus if self.settings.repaired else bonus - nearness
        return descend(scores, past, random.Random(f"{self.config.seed}/{self.task}/tree/{step}"))

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Finishes as SeqLoRA, and keeps the task's v."""
        past = {name: tensor for name, tensor in self.kept.items() if name.startswith(PAST)}
        report, updates = super().finish(model)
        for name in updates:
            own = self.gathered[SUM + name].cpu()[None]
            self.kept[PAST + name] = torch.cat([past[PAST + name], own]) if PAST + name in past else own
        return report, updates


def pull(
    As: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor], weight: float, repaired: bool
) -> tuple[float, list[torch.Tensor]]:
    """Returns -weight rho / (rho' + 1e-5), rho = -sum <A, v>, and its gradient for each A.

    With `repaired` the value is weight rho / (|rho'| + 1e-5).
    """
    rho = -sum(float((A * v.to(A)).sum()) for A, v in zip(As, vectors, strict=True))
    share = -weight / (abs(rho) + 1e-5) if repaired else weight / (rho + 1e-5)
    return -share * rho, [share * v.to(A) for A, v in zip(As, vectors, strict=True)]


def descend(scores: torch.Tensor, past: Sequence[torch.Tensor], draws: random.Random) -> list[int]:
    """Draws a task for each projection, by the softmax of its scores [tasks, projections], shifted to a minimum of 0.

    At each level the subtree that contains the drawn task is entered; the scores of its tasks are multiplied at all
    lower levels by the value at which the node was split (`split`), at most 1.5.
    """
    node, boost = list(range(len(scores))), torch.ones(len(scores), dtype=scores.dtype)
    drawn = []
    for of_level, vectors in zip(scores.T, past, strict=True):
        weights = ((of_level - of_level.min()) * boost).softmax(0)
        (task,) = draws.choices(range(len(scores)), weights.tolist())
        drawn.append(task)
        if len(node) > 1 and task in node:
            left, right, middle = split(vectors, node)
            node = left if task in left else right
            boost[node] *= min(middle, LARGEST)
    return drawn


def split(vectors: torch.Tensor, tasks: list[int]) -> tuple[list[int], list[int], float]:
    """Splits a node's tasks in two at the (lower) median of the products of their changes with the mean change.

    Args:
        vectors: [tasks, ...], the v of all tasks at the level's projection. A task's change is the difference from the
            v of the task before it.
        tasks: the tasks of the node, at least two; split in halves if all products are at least the median.

    Returns:
        (tasks whose product is at least the median, the other tasks, the median).
    """
    every = vectors.flatten(1)
    changes = torch.diff(every, dim=0, prepend=torch.zeros_like(every[:1]))[tasks]
    products = changes @ changes.mean(0)
    middle = products.median()
    left = [task for task, product in zip(tasks, products, strict=True) if product >= middle]
    if len(left) == len(tasks):
        left = tasks[: len(tasks) // 2]
    return left, [task for task in tasks if task not in left], float(middle)
