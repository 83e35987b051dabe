"""The base of all methods: fixed-rank LoRA, merged after each task. A method's file contains only what it changes."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, prune
from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.adapter.merging import Deltas, Factors, ModuleRank, deltas, difference, of_change, stacked, unwrap
from codyra_llm.adapter.offset import subtract
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.errors import UserError
from codyra_llm.methods.hooks import Hooks

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig
    from codyra_llm.example import Example


@dataclass(frozen=True)
class NoSettings:
    """The settings of a method that has none of its own."""


@dataclass(frozen=True)
class Needs:
    """The configurations that a method can run with; others are rejected before a model is loaded.

    Attributes:
        zero_stages: ZeRO stages that it supports.
        quantized_base: whether the base model may be quantized.
        whole_updates: whether the whole update must be merged (merge.scale 1).
        first_task: whether it must see every task from the first one on, so that `extend` is not possible.
        continues: whether a branch starts from a non-zero update, from which directions cannot be removed
            (retention.protected).
        domains: kinds of data that it can learn from, as task files name them; only text where it needs a language
            model (texts that the model generates, hidden states of prompts, rows as token ids).
    """

    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    quantized_base: bool = True
    whole_updates: bool = False
    first_task: bool = False
    continues: bool = False
    domains: tuple[str, ...] = ("text", "images")


@dataclass(frozen=True)
class Prepared:
    """The objects that a method returns to the training loop: wrapped projections, optimizer, threshold schedule."""

    wrapped: list[str]
    optimizer: Proximal
    schedule: ThresholdSchedule | None = None


class Method(Hooks):
    """The base class of methods; the defaults are fixed-rank LoRA, merged after each task.

    Attributes:
        name: the value of the `method` setting that selects it; also the name of its section of the configuration.
        summary: one line for --help and the model card.
        Settings: a frozen dataclass whose fields carry their help and range (`options.option`).
        needs: the configurations that it can run with.
        trains_gates: whether a branch can end a task with a lower rank than it started with.
        kept: state from finished tasks, as named tensors that are whole on every rank. A run saves them after each
            task and restores them when it resumes.
        task: the task that was prepared last.
        taken_away: the updates that are subtracted from its projections while it trains (`take_away`), by projection.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    Settings: ClassVar[type] = NoSettings
    needs: ClassVar[Needs] = Needs()
    trains_gates: ClassVar[bool] = False
    task: str = ""

    def __init__(self, config: "RunConfig") -> None:
        super().__init__()
        self.config = config
        self.settings: Any = getattr(config, self.name, NoSettings())
        self.kept: dict[str, torch.Tensor] = {}
        self.taken_away: Deltas = {}
        self._offsets: list[RemovableHandle] = []

    @property
    def adapter(self) -> CoDyRAConfig:
        """The adapter configuration of a task's branches: gates frozen at one."""
        return dataclasses.replace(self.config.adapter, train_gates=False, gate_init="ones")

    def check(self, task: str, total_steps: int) -> None:
        """Raises UserError if a task of `total_steps` optimizer steps cannot be learned as configured."""

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """Returns the rows of earlier tasks (by name, in order) to mix into the task's own; determined by the seed."""
        return ()

    @property
    def relative_cost(self) -> float:
        """FLOPs of an optimizer step, including the method's extra passes, relative to fixed-rank LoRA."""
        return 1.0

    @property
    def lengthens(self) -> bool:
        """True if replayed rows add optimizer steps; otherwise they replace some of the task's own rows."""
        return False

    @property
    def added_tokens(self) -> int:
        """Number of positions that the method inserts before each row."""
        return 0

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Prepared:
        """Creates branches and an optimizer for a task; random draws depend only on (seed, task, projection)."""
        self.task, self.gathered, self.taken_away = task, {}, {}
        wrapped = self.wrap(model)
        with torch.no_grad():
            for name, layer in gated_layers(model):
                self.start_branch(name, layer)
        train = self.config.train
        optimizer = _optimizer(train.adam_bits).for_model(
            model,
            self.adapter,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
        )
        return Prepared(wrapped, optimizer)

    def wrap(self, model: nn.Module) -> list[str]:
        """Freezes the model and injects randomly initialized branches; returns the names of the wrapped projections."""
        return inject(model, self.adapter, seed=f"{self.config.seed}/{self.task}")

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Initializes one projection's branch in place; by default it stays as drawn.

        A and B may be written to, frozen (`requires_grad_`), or replaced by others of any rank (with a gate [rank] of
        the same rank); directions may be blocked (`blocked_inputs`, `blocked_outputs`); an update may be subtracted
        from the projection (`take_away`). A dense update is a branch whose A is the identity, frozen.
        """

    def size_branch(self, layer: CoDyRALinear) -> None:
        """Does the part of `start_branch` that planning needs, on a meta model: parameter shapes and requires_grad."""

    def drawn(self, rows: "Sequence[Example]", count: int, draw: str) -> "list[Example]":
        """Samples at most `count` of the rows, in their order; which ones depends on (seed, `draw`) alone."""
        chosen = random.Random(f"{self.config.seed}/{draw}").sample(range(len(rows)), min(len(rows), count))
        return [rows[row] for row in sorted(chosen)]

    def take_away(self, name: str, layer: CoDyRALinear, B: torch.Tensor, A: torch.Tensor) -> None:
        """Makes the projection compute W x - B A x until the task ends, as for a branch that starts from B A."""
        self._offsets.append(subtract(layer, B, A))
        self.taken_away[name] = B, A

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Removes the branches from the model; returns what each projection kept, and the updates for the ledger."""
        while self._offsets:
            self._offsets.pop().remove()
        scale = self.config.merge.scale
        report = prune(model)  # drops nothing where gates are frozen at one
        updates = deltas(model, scale)
        unwrap(model)
        scaled = [dataclasses.replace(kept, norm=scale * kept.norm, bound=scale * kept.bound) for kept in report]
        return scaled, updates

    def changes(self, report: list[ModuleRank], updates: Deltas) -> tuple[list[ModuleRank], Deltas]:
        """Subtracts what was taken away (`take_away`) from the result of `finish`: the change of the model."""
        starts, self.taken_away = self.taken_away, {}
        found = {
            name: difference(factors, starts[name]) if name in starts else factors for name, factors in updates.items()
        }
        return [of_change(kept, *found[kept.name]) for kept in report], found

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """Combines the updates of all ledger entries for one projection into the one that is added to its weight.

        Args:
            settings: the method's settings.
            updates: (B, A) of each entry, in order; None for an entry that does not change the projection.

        Returns:
            Factors of the update that is added to the weight; for a dense update, A is the identity.
        """
        return stacked(updates)

    @classmethod
    def sums(cls) -> bool:
        """True if entries are summed, so that each can be merged on its own."""
        return cls.combine is Method.combine

    def check_run(self, zero_stage: int) -> None:
        """Raises UserError, with the reason, if the method cannot run with the configuration of the run."""
        config, needs = self.config, self.needs
        problem = None
        if zero_stage not in needs.zero_stages:
            problem = f"it cannot run at ZeRO stage {zero_stage}; use {' or '.join(map(str, needs.zero_stages))}"
        elif config.model.quantization and not needs.quantized_base:
            problem = "it cannot train a quantized base model; leave model.quantization empty"
        elif config.merge.scale != 1 and needs.whole_updates:
            problem = f"no share of its updates can be merged, so merge.scale must be 1, not {config.merge.scale:g}"
        elif config.merge.mode == "in_place" and not self.sums():
            problem = "its entries are combined anew after each task; set merge.mode exact"
        elif config.extend and needs.first_task:
            problem = "it needs what it keeps from every task, which a ledger does not contain; leave extend empty"
        elif config.retention.protected and needs.continues:
            problem = "it continues a branch, which directions cannot be taken from; leave retention.protected at 0"
        if problem:
            raise UserError(f"method {self.name}: {problem}")


def _optimizer(bits: int) -> type[Proximal]:
    if bits == 32:
        return ProximalAdamW
    from codyra_llm.adapter.optimizer_8bit import ProximalAdamW8bit  # imports bitsandbytes, which takes a second

    return ProximalAdamW8bit
