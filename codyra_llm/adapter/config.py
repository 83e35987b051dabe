"""The method's settings: one frozen dataclass, each field with its help text."""

from dataclasses import dataclass
from typing import Literal

from codyra_llm.options import ABOVE_ZERO, option
from codyra_llm.text import shown

ThresholdMode = Literal["importance", "budget", "reference"]

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_STRENGTH = {"importance": 0.5, "budget": 0.65, "reference": 0.005}

# In `importance` mode a component's threshold is at most and at least this many times the common one.
IMPORTANCE_CLIP = (0.1, 4.0)


@dataclass(frozen=True)
class CoDyRAConfig:
    """Importance-gated low-rank branches: delta W = B diag(gate) A, gates thresholded to exact zeros.

    Raises ValueError where a value, or a combination of values, cannot work.
    """

    rank: int = option(16, "rank components that each branch starts a task with")
    target_modules: tuple[str, ...] = option(DEFAULT_TARGETS, "names of the projections that get a branch")
    threshold_mode: ThresholdMode = option(
        "importance",
        "importance: threshold by what the loss says of each component; budget: a fixed total shrink for all; "
        "reference: the official code step for step",
    )
    threshold_strength: float | None = option(
        None,
        "importance, budget: total shrink over a task (defaults 0.5, 0.65); reference: the largest threshold (0.005)",
    )
    dense_fraction: float = option(0.5, "share of a task's steps before the threshold begins")
    ramp_levels: int = option(50, "steps of the threshold's ramp in reference mode")
    importance_decay: float = option(0.9, "decay of the moving average of |gate * dL/dgate| in importance mode")
    gate_init: Literal["auto", "ones", "normal"] = option(
        "auto", "first value of the gates: ones, normal (N(0,1)), or auto: ones in importance mode, else normal"
    )
    train_gates: bool = option(True, "false: gates stay at their first value, and the branch is a plain LoRA")
    gate_learning_rate: float | None = option(
        None, "learning rate of the gates; empty: the adapters' own", within=ABOVE_ZERO
    )
    regrow: bool = option(True, "whether a gate at zero keeps learning and may leave it again, as in the official code")
    compact_every: int = option(
        0,
        "regrow false: steps after which components at zero are left out of the products, again and again; 0: never",
        neutral=True,
    )
    impl: Literal["auto", "reference", "fused", "triton"] = option(
        "auto",
        "how the branch is computed: reference (plain), fused, triton (fused, GPU kernels), or auto: triton on a GPU "
        "that has it, else fused",
        neutral=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        checks = [
            (self.rank >= 1, f"rank is {shown(self.rank)}; it must be at least 1"),
            (bool(self.target_modules), "target_modules is empty; name at least one projection, for example q_proj"),
            (0 <= self.dense_fraction <= 1, f"dense_fraction is {shown(self.dense_fraction)}; it must be in [0, 1]"),
            (self.ramp_levels >= 2, f"ramp_levels is {shown(self.ramp_levels)}; it must be at least 2"),
            (
                0 <= self.importance_decay < 1,
                f"importance_decay is {shown(self.importance_decay)}; it must be in [0, 1)",
            ),
            (self.compact_every >= 0, f"compact_every is {shown(self.compact_every)}; it must be at least 0"),
            (
                not (self.compact_every and self.regrow),
                "compact_every leaves out components that may grow again; set regrow to false with it",
            ),
        ]
        for good, message in checks:
            if not good:
                raise ValueError(message)
        if self.train_gates:
            self._check_threshold()

    def _check_threshold(self) -> None:
        if self.strength <= 0:
            raise ValueError(f"threshold_strength is {self.strength}: it can prune nothing; it must be above 0")
        reach = self.strength * (IMPORTANCE_CLIP[1] if self.threshold_mode == "importance" else 1)
        if self.threshold_mode != "reference" and self.gates_start_at_one and reach < 1:
            raise ValueError(
                f"threshold_strength is {self.strength}: a gate that starts at one is shrunk by at most {reach:g} "
                f"in {self.threshold_mode} mode, which can prune nothing; "
                f"use at least {self.strength / reach:g}, or gate_init: normal"
            )

    @property
    def strength(self) -> float:
        """threshold_strength, or the mode's default."""
        return DEFAULT_STRENGTH[self.threshold_mode] if self.threshold_strength is None else self.threshold_strength

    @property
    def gates_start_at_one(self) -> bool:
        """Whether gates start at one (and not at a draw from N(0, 1))."""
        return self.gate_init == "ones" or (
            self.gate_init == "auto" and (self.threshold_mode == "importance" or not self.train_gates)
        )
