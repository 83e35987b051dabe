"""AdamW followed by a proximal step: the soft threshold that drives importance gates to exact zeros.

The threshold is element-wise, so it works on any slice of the gates that an optimizer steps: whole parameters, or the
flat fp32 partitions of ZeRO. The schedule only sets `group["threshold"]`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from codyra_llm.adapter.config import IMPORTANCE_CLIP, CoDyRAConfig
from codyra_llm.adapter.layer import gated_layers

AVERAGES = ("exp_avg", "exp_avg_sq", "importance")  # the moving averages of a parameter


def soft_threshold(values: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Computes T_k(x) = sign(x) * max(|x| - k, 0), the proximal operator of k|x| (CoDyRA, equation 4)."""
    return torch.sign(values) * (values.abs() - threshold).clamp(min=0)


def reference_threshold(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Applies the official code's threshold: three masked assignments, one after the other.

    A value between k and 2k is shrunk by the first and then zeroed by the last, so the dead zone is 2k wide on each
    side; a value equal to k is unchanged.
    """
    values = torch.where(values > threshold, values - threshold, values)
    values = torch.where(values < -threshold, values + threshold, values)
    return torch.where(values.abs() < threshold, torch.zeros_like(values), values)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sums a small tensor over all ranks; returns it unchanged if there is no process group."""
    if dist.is_available() and dist.is_initialized():
        if dist.get_backend() == "nccl":  # which cannot reduce tensors on the CPU, where offloading keeps them
            values = values.cuda()
        dist.all_reduce(values)
    return values


class Proximal(torch.optim.Optimizer):
    """An AdamW whose parameter groups may have a threshold, which is applied to their values after each step.

    Keys of a thresholded group: `threshold` (0: no threshold), `threshold_mode` (importance, budget or reference),
    `importance_decay`, and `regrow` (False: values at zero stay at zero). In importance mode the threshold of a
    component i is threshold * clip(s_ref / s_i, 0.1, 4), where s_i is the moving average of |gate_i * dL/dgate_i| (to
    first order, the change of the loss if the component were removed) and s_ref the geometric mean of all s_i. A
    component at zero keeps its last s_i. The average is element-wise optimizer state; s_ref costs one all-reduce of two
    numbers.

    Args:
        params: parameters or groups, as for every torch optimizer; `for_model` makes the usual two groups.
        lr: as in AdamW.
        betas: as in AdamW.
        eps: as in AdamW.
        weight_decay: as in AdamW.
        options: further options of AdamW.
    """

    # gates stepped by this process that are not zero after the last step; on their device, so that no step waits for it
    live_gates: torch.Tensor | int = 0
    before_step: Callable[[], None] | None = None  # called in each `step`, before Adam
    after_step: Callable[[], None] | None = None  # called in each `step`, after the threshold

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)  # type: ignore[call-arg]

    @classmethod
    def for_model(
        cls, model: nn.Module, config: CoDyRAConfig | None = None, lr: float = 5e-4, **kwargs: Any
    ) -> "Proximal":
        """Returns an optimizer over a model's branches: one group of A and B, one of the gates; only what trains."""
        config = config or CoDyRAConfig()
        layers = [layer for _, layer in gated_layers(model)]
        factors = [factor for layer in layers for factor in (layer.A, layer.B) if factor.requires_grad]
        groups: list[dict[str, Any]] = [{"params": factors, "lr": lr}]
        if config.train_gates:
            groups.append(
                {
                    "params": [layer.gate for layer in layers],
                    "lr": lr if config.gate_learning_rate is None else config.gate_learning_rate,
                    "threshold": 0.0,
                    "threshold_mode": config.threshold_mode,
                    "importance_decay": config.importance_decay,
                    "regrow": config.regrow,
                }
            )
        return cls(groups, lr=lr, **kwargs)

    def moments(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the moving averages of a parameter, or flat slice of several, by name (`AVERAGES`).

        All have the layout of `p` and are fp32; averages that do not exist yet are left out.
        """
        return {name: self.state[p][name] for name in AVERAGES if name in self.state[p]}

    def set_moments(self, p: torch.Tensor, step: int, moments: dict[str, torch.Tensor], of_gates: bool) -> None:
        """Restores the `moments` after `step` steps; a slice contains only gates (`of_gates`) or none."""
        self.state[p].update({"step": torch.tensor(float(step), device=p.device), **moments})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Runs one AdamW step, then applies the threshold to the groups that have one."""
        if self.before_step:
            self.before_step()
        contributions = {
            p: (p * p.grad).abs()
            for group in self.param_groups
            if group.get("threshold_mode") == "importance"
            for p in group["params"]
            if p.grad is not None
        }
        dead = {p: p == 0 for group in self.param_groups if not group.get("regrow", True) for p in group["params"]}
        loss = super().step(closure)
        for p, zeros in dead.items():
            p.masked_fill_(zeros, 0)  # Adam's moments would move it
        for group in self.param_groups:
            # ZeRO-3 steps one group at a time and leaves the others empty, the same on every rank
            if "threshold_mode" in group and group["params"]:
                self._apply_threshold(group, contributions)
        if self.after_step:
            self.after_step()
        return loss

    def _apply_threshold(self, group: dict[str, Any], contributions: dict[torch.Tensor, torch.Tensor]) -> None:
        self._shrink(group, contributions)
        self.live_gates = torch.cat([p.flatten() for p in group["params"]]).count_nonzero()

    def _shrink(self, group: dict[str, Any], contributions: dict[torch.Tensor, torch.Tensor]) -> None:
        threshold, mode, parameters = group["threshold"], group["threshold_mode"], group["params"]
        if mode == "importance":
            for p, contribution in contributions.items():
                average = self.state[p].setdefault("importance", torch.zeros_like(contribution))
                moved = average.lerp(contribution, 1 - group["importance_decay"])
                # a gate at zero contributes nothing; it keeps its importance, or each one would lower s_ref
                average.copy_(torch.where(contribution > 0, moved, average))
        if threshold <= 0:
            return
        if mode == "importance":
            ratios = self._importance_ratios(parameters)
            for p, ratio in zip(parameters, ratios, strict=True):
                p.copy_(soft_threshold(p, threshold * ratio))
        else:
            rule = reference_threshold if mode == "reference" else soft_threshold
            for p in parameters:
                p.copy_(rule(p, threshold))

    def _importance_ratios(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns clip(s_ref / s_i, 0.1, 4) for each element, with s_ref over the gates of all ranks."""
        averages = [self.state[p].get("importance", torch.zeros_like(p)) for p in parameters]
        every = torch.cat([s.flatten() for s in averages]).double()
        counts = every > 0  # zeros are padding, or components that never mattered
        total = torch.stack([torch.where(counts, every, 1).log().sum(), counts.sum().double()])
        total = sum_over_ranks(total).to(every.device)
        reference = (total[0] / total[1].clamp(min=1)).exp()
        return [(reference / s.double()).clamp(*IMPORTANCE_CLIP).to(s.dtype) for s in averages]


class ProximalAdamW(Proximal, torch.optim.AdamW):
    """AdamW and its proximal step, with all moving averages in fp32.

    It uses torch's fused step, which updates hundreds of small tensors with one pass over the memory of each.
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, fused=True, **options)
