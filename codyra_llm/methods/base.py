"""The base of all methods: fixed-rank LoRA, merged after each task. A method is one file that shows what it changes."""

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
    """What a method can run with; everything else is refused before a model is loaded.

    Attributes:
        zero_stages: ZeRO stages that it supports.
        quantized_base: whether the base model may be quantized.
        whole_updates: whether all of an update must be merged (merge.scale 1).
        first_task: whether it must see every task from the first one on: no `extend`.
        continues: whether branches start as something else than zero, which must not lose directions.
        domains: kinds of data that it can learn from, as task files name them; text alone where it needs a language
            model: text that the model writes, states of prompts, rows as token ids.
    """

    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    quantized_base: bool = True
    whole_updates: bool = False
    first_task: bool = False
    continues: bool = False
    domains: tuple[str, ...] = ("text", "images")


@dataclass(frozen=True)
class Prepared:
    """What a method gives to the training loop: the wrapped projections, their optimizer, the thresholds."""

    wrapped: list[str]
    optimizer: Proximal
    schedule: ThresholdSchedule | None = None


class Method(Hooks):
    """A method's part of a run. What is not overridden is fixed-rank LoRA, merged after each task.

    Attributes:
        name: that a user chooses it by; also the name of its section of the configuration.
        summary: one line for --help and the model card.
        Settings: a frozen dataclass whose fields carry their help and range (`options.option`).
        needs: what it can run with.
        trains_gates: whether it can end with a lower rank than it began with.
        kept: what it keeps from finished tasks, named tensors that are whole on every rank. A run saves them after each
            task and gives them back when it resumes.
        task: the one that was prepared last.
        taken_away: the updates that its projections leave out while it trains (`take_away`), by projection.
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
        """The branches that a task starts with: gates frozen at one."""
        return dataclasses.replace(self.config.adapter, train_gates=False, gate_init="ones")

    def check(self, task: str, total_steps: int) -> None:
        """Raises UserError where a task of so many optimizer steps cannot be learned as configured."""

    def replayed(self, task: str, earlier: "Mapping[str, Sequence[Example]]") -> "Sequence[Example]":
        """The rows of earlier tasks (by name, in order) that are mixed into a task's own: a function of the seed."""
        return ()

    @property
    def relative_cost(self) -> float:
        """FLOPs of an optimizer step, passes of the method's own included, in those of fixed-rank LoRA."""
        return 1.0

    @property
    def lengthens(self) -> bool:
        """Whether replayed rows add optimizer steps; else they take the place of some of the task's own."""
        return False

    @property
    def added_tokens(self) -> int:
        """How many positions of the model it takes before each row."""
        return 0

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Prepared:
        """New branches and a new optimizer for a task; the draws depend on (seed, task, projection) alone."""
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
        """Freezes the model and puts branches into it, as drawn; returns the names of what has one."""
        return inject(model, self.adapter, seed=f"{self.config.seed}/{self.task}")

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """What one projection's branch starts as, changed in place; by default it is as drawn.

        A and B may be written to, frozen (`requires_grad_`), or replaced by others of any rank (the gate goes with
        them: [rank]); directions may be blocked (`blocked_inputs`, `blocked_outputs`); an update may be taken away
        from the projection (`take_away`). A dense update is a branch whose A is the identity, frozen.
        """

    def size_branch(self, layer: CoDyRALinear) -> None:
        """What a plan, on a model without values, must know of `start_branch`: the parameters' shapes, which train."""

    def drawn(self, rows: "Sequence[Example]", count: int, draw: str) -> "list[Example]":
        """At most `count` of some rows, in their order; which ones depends on (seed, name of the draw) alone."""
        chosen = random.Random(f"{self.config.seed}/{draw}").sample(range(len(rows)), min(len(rows), count))
        return [rows[row] for row in sorted(chosen)]

    def take_away(self, name: str, layer: CoDyRALinear, B: torch.Tensor, A: torch.Tensor) -> None:
        """Lets the layer's projection compute W x - B A x until the task ends, for a branch that continues from B A."""
        self._offsets.append(subtract(layer, B, A))
        self.taken_away[name] = B, A

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Takes the branches out of the model: what each projection kept, and the updates for the ledger."""
        while self._offsets:
            self._offsets.pop().remove()
        scale = self.config.merge.scale
        report = prune(model)  # drops nothing where gates are frozen at one
        updates = deltas(model, scale)
        unwrap(model)
        scaled = [dataclasses.replace(kept, norm=scale * kept.norm, bound=scale * kept.bound) for kept in report]
        return scaled, updates

    def changes(self, report: list[ModuleRank], updates: Deltas) -> tuple[list[ModuleRank], Deltas]:
        """What `finish` gives, less what was taken away: by how much the model has changed."""
        starts, self.taken_away = self.taken_away, {}
        found = {
            name: difference(factors, starts[name]) if name in starts else factors for name, factors in updates.items()
        }
        return [of_change(kept, *found[kept.name]) for kept in report], found

    @staticmethod
    def combine(settings: Any, updates: "Sequence[Factors | None]") -> Factors:
        """One update of a projection, of those of all entries; a ledger of the method is read with it.

        Args:
            settings: the method's.
            updates: (B, A) of each entry, in order; None for one that does not touch the projection.

        Returns:
            Factors of what is added to the weight; of a dense update, A is the identity.
        """
        return stacked(updates)

    @classmethod
    def sums(cls) -> bool:
        """Whether entries are summed, so that each can be merged by itself."""
        return cls.combine is Method.combine

    def check_run(self, zero_stage: int) -> None:
        """Raises UserError, with the reason, where the run is configured as the method cannot run."""
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
