"""MoRAM: rank-one atoms of all tasks side by side; each token activates some of them (arXiv 2506.21035)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank
from codyra_llm.adapter.offset import added
from codyra_llm.errors import UserError
from codyra_llm.methods.base import Method, Needs
from codyra_llm.options import ABOVE_ZERO, AT_LEAST_ZERO, FRACTION, option


@dataclass(frozen=True)
class MoRAMSettings:
    """Settings of how atoms are activated for a token."""

    atoms: int = option(8, "atoms that take part at a token, at least 2; 0: all, at weight one", within=AT_LEAST_ZERO)
    temperature: float = option(0.03, "that scores are divided by before their softmax", within=ABOVE_ZERO)
    threshold: float = option(0.2, "score that an atom must have to take part at inference", within=FRACTION)


class MoRAM(Method):
    """y = W x + B (w * z), z = A x: each task adds `rank` rows of A and columns of B (atoms); earlier ones are frozen.

    w is the softmax over the largest scores z / |z|, signed, divided by the temperature, and zero for the other atoms;
    at inference also zero for atoms below the threshold. The task of a row is not used. Nothing is merged: the saved
    model is the base, and each projection costs 2 r T (in_features + out_features) more FLOPs per token after T tasks.
    The released code multiplies new atoms by alpha / rank but not stored ones, so a task's part halves when it is
    stored; here both have the same weight. Kept: "<projection>.B", ".A", the atoms of all tasks.
    """

    name = "moram"
    summary = "MoRAM: rank-one atoms of all tasks, chosen at each token by their own keys, none of them merged"
    Settings = MoRAMSettings
    needs = Needs(first_task=True, whole_updates=True)

    def check_run(self, zero_stage: int) -> None:
        """Checks the run as the base class does; rejects the model's own text, which atoms would not take part in."""
        super().check_run(zero_stage)
        if self.config.retention.own_text or self.config.retention.protected:
            raise UserError(
                f"method {self.name}: it merges nothing, so text of the model's own does not show what it has learned; "
                "leave retention.own_text and retention.protected at 0"
            )

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Attaches the frozen atoms of earlier tasks to the layer, and the rule that activates atoms."""
        if f"{name}.A" in self.kept:
            B, A = (self.kept[f"{name}.{part}"].to(layer.A) for part in "BA")
            layer.stored = B, A
        layer.mix = self._mix(0.0)

    def _mix(self, threshold: float) -> "partial[torch.Tensor]":
        return partial(chosen, count=self.settings.atoms, temperature=self.settings.temperature, threshold=threshold)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Keeps the task's atoms instead of merging them; returns no updates."""
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            old_B, old_A = (self.kept.get(f"{name}.{part}") for part in "BA")
            self.kept[f"{name}.B"] = B.cpu() if old_B is None else torch.cat([old_B, B.cpu()], dim=1)
            self.kept[f"{name}.A"] = A.cpu() if old_A is None else torch.cat([old_A, A.cpu()])
        return report, {}

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[None]:
        """Returns a context in which the atoms of all tasks so far are active; `task` is not used."""
        names = [key.removesuffix(".B") for key in self.kept if key.endswith(".B")]
        device = next(model.parameters()).device
        atoms = {name: (self.kept[f"{name}.B"].to(device), self.kept[f"{name}.A"].to(device)) for name in names}
        return added(model, atoms, self._mix(self.settings.threshold))


def chosen(down: torch.Tensor, count: int, temperature: float, threshold: float) -> torch.Tensor:
    """Returns w * z for the products z = A x, [..., atoms].

    Args:
        down: z.
        count: number of the largest scores z / |z| that have a weight w, at least 2; 0: w is 1 everywhere.
        temperature: divisor of the scores in their softmax.
        threshold: scores below it get the weight 0; 0: no threshold.
    """
    if not count:
        return down
    scores = down / down.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(down.dtype).tiny)
    best, places = scores.topk(min(max(count, 2), down.shape[-1]))
    weights = (best / temperature).softmax(-1)
    if threshold:
        weights = weights * (best >= threshold)
    return torch.zeros_like(down).scatter(-1, places, weights) * down
