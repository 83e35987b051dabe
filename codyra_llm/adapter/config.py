"""The method's settings: one frozen dataclass, each field with its help text."""

from dataclasses import dataclass
from typing import Literal

from codyra_llm.options import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_TWO,
    AT_LEAST_ZERO,
    DECAY,
    FRACTION,
    check_numbers,
    option,
)

ThresholdMode = Literal["importance", "budget", "reference"]

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # of models of several towers, as CLIP
LAYERS = ("all", "early", "middle", "late")
DEFAULT_STRENGTH = {"importance": 0.5, "budget": 0.65, "reference": 0.005}

# in `importance` mode, bounds of the ratio of a component's threshold to the common one
IMPORTANCE_CLIP = (0.1, 4.0)


@dataclass(frozen=True)
class CoDyRAConfig:
    """Importance-gated low-rank branches: delta W = B diag(gate) A, gates thresholded to exact zeros.

    Raises ValueError if a value, or a combination of values, is invalid.
    """

    rank: int = option(16, "rank components that each branch starts a task with", within=AT_LEAST_ONE)
    target_modules: tuple[str, ...] = option(
        DEFAULT_TARGETS,
        "names of the projections that get a branch; auto: these where a model has all of them, those of attention and "
        "MLP in both towers of CLIP, else all-linear; all-linear: every linear layer of the decoder",
    )
    target_layers: tuple[str | int, ...] = option(
        ("all",), "layers whose projections get a branch: all; early, middle or late (a third each); or numbers, from 0"
    )
    threshold_mode: ThresholdMode = option(
        "importance",
        "importance: threshold by what the loss says of each component; budget: a fixed total shrink for all; "
        "reference: the official code step for step",
    )
    threshold_strength: float | None = option(
        None,
        "importance, budget: total shrink over a task (defaults 0.5, 0.65); reference: the largest threshold (0.005)",
    )
    dense_fraction: float = option(0.5, "share of a task's steps before the threshold begins", within=FRACTION)
    ramp_levels: int = option(50, "steps of the threshold's ramp in reference mode", within=AT_LEAST_TWO)
    importance_decay: float = option(
        0.9, "decay of the moving average of |gate * dL/dgate| in importance mode", within=DECAY
    )
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
        within=AT_LEAST_ZERO,
    )
    impl: Literal["auto", "reference", "fused", "triton"] = option(
        "auto",
        "how the branch is computed: reference (plain), fused, triton (fused, GPU kernels), or auto: triton on a GPU "
        "that has it, else fused",
        neutral=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        object.__setattr__(self, "target_layers", tuple(map(str, self.target_layers)))
        check_numbers(self)
        if not self.target_modules:
            raise ValueError("target_modules is empty; name at least one projection, for example q_proj")
        if wrong := [each for each in self.target_layers if each not in LAYERS and not str(each).isdecimal()]:
            raise ValueError(f"target_layers: {wrong[0]!r} is neither {', '.join(LAYERS)} nor the number of a layer")
        if self.compact_every and self.regrow:
            raise ValueError("compact_every leaves out components that may grow again; set regrow to false with it")
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
        """`threshold_strength`, or the default of the mode."""
        return DEFAULT_STRENGTH[self.threshold_mode] if self.threshold_strength is None else self.threshold_strength

    @property
    def gates_start_at_one(self) -> bool:
        """True if gates start at one, False if they start as draws from N(0, 1)."""
        return self.gate_init == "ones" or (
            self.gate_init == "auto" and (self.threshold_mode == "importance" or not self.train_gates)
        )
