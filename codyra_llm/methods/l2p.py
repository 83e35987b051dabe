"""L2P: a pool of prompts, of which each row reads those whose keys are nearest to it (arXiv 2112.08654)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas
from codyra_llm.adapter.prompts import PromptedEmbedding, prompted
from codyra_llm.errors import UserError
from codyra_llm.methods.hooks import Penalty, RowPasses
from codyra_llm.methods.prompting import Prompting, similarity
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig
    from codyra_llm.example import Example


@dataclass(frozen=True)
class L2PSettings:
    """The pool."""

    pool: int = option(10, "prompts in the pool", within=AT_LEAST_ONE)
    length: int = option(5, "vectors of a prompt", within=AT_LEAST_ONE)
    selected: int = option(3, "prompts that are put before a row; 0: none, the model as it is", within=AT_LEAST_ZERO)
    pull: float = option(0.5, "weight of the similarity of rows with the keys that they choose", within=AT_LEAST_ZERO)
    repaired: bool = option(False, "whether keys are learned, and chosen by a row's prompt alone in training as well")


class L2P(Prompting):
    """L - pull * mean over a step's rows of sum cos(q, k_i) over the `selected` nearest keys, whose prompts are read.

    q is the row's query, k_i one of `pool` keys. As released for language models (TRACE), and not as meant: k_i is the
    mean of prompt i's vectors as they began, and stays so, while its gradient goes into the prompt (through the graph
    of the mean), so that which prompts a row reads never changes; and queries of training rows are of prompt and
    answer, those of test rows of the prompt. `repaired`, as the paper has it: keys are parameters of their own, which
    start there and which the term alone trains, and every query is of the row's prompt.

    Differences: the released query counts padding, so that a row's prompts depend on its batch, and the released prefix
    is labelled as the batch's first token is; the term is one mean over all ranks and micro batches. The paper's query
    is the feature of a frozen encoder. Kept: "prompts" [pool * length, hidden_size] and "keys" [hidden_size, pool], in
    which all tasks go on.
    """

    name = "l2p"
    summary = "L2P: prompts of a pool before each row, chosen by its likeness with their keys, none of them merged"
    Settings = L2PSettings

    _queries: torch.Tensor  # of the task's rows
    _keys: torch.Tensor
    _rows: Sequence[int] = ()  # of the step

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        settings: L2PSettings = self.settings
        self.vectors, self.keys = settings.pool * settings.length, settings.pool
        self.learns_keys, self.sees_answers = settings.repaired, not settings.repaired

    def check_run(self, zero_stage: int) -> None:
        """As the base class; no more prompts can be selected than there are."""
        super().check_run(zero_stage)
        if self.settings.selected > self.settings.pool:
            raise UserError(
                f"method l2p: l2p.selected is {self.settings.selected}, the pool has {self.settings.pool} prompts; "
                "lower it"
            )

    @property
    def added_tokens(self) -> int:
        """The vectors of the prompts that a row reads."""
        return int(self.settings.selected * self.settings.length)

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Queries; of the first task also what the pool begins with."""
        self._queries = self.queries(rows, passes)
        if "prompts" in self.kept:
            self.start, self._keys = self.kept["prompts"], self.kept["keys"]
        else:
            self.start = self.words(rows, passes, self.vectors, "pool")
            self._keys = self._means(self.start)

    def _means(self, prompts: torch.Tensor) -> torch.Tensor:
        return prompts.unflatten(0, (self.keys, -1)).mean(1).T

    def choose(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The vectors of the nearest prompts, nearest first."""
        length = self.settings.length
        nearest = similarity(queries, keys).topk(self.settings.selected).indices
        return (nearest[..., None] * length + torch.arange(length, device=nearest.device)).flatten(1)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """The pool as it is."""
        super().start_branch(name, layer)
        layer.B.copy_(self._keys)

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """Which rows the term is over."""
        self._rows = passes.rows_of(step)

    def penalty(self, branches: Deltas) -> Penalty:
        """The term, and its gradient for keys or prompts."""
        ((name, (keys, prompts)),) = branches.items()
        learned = keys if self.settings.repaired else prompts
        with torch.enable_grad():
            learned.requires_grad_()
            if not self.settings.repaired:
                means = self._means(prompts)
                keys = keys + means - means.detach()
            near = similarity(self._queries[self._rows].to(keys), keys).topk(self.settings.selected).values
            value = -self.settings.pull * near.sum(1).mean()
        (gradient,) = torch.autograd.grad(value, learned)
        return float(value.detach()), {f"{name}.{'B' if self.settings.repaired else 'A'}": gradient}

    def keep(self, layer: PromptedEmbedding) -> None:
        """The pool."""
        self.kept = {"prompts": layer.A.detach().cpu().clone(), "keys": layer.B.detach().cpu().clone()}

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[None]:
        """Each row reads the prompts that it chooses, whatever its task: none is told."""
        if not self.kept:  # the base model
            return nullcontext()
        return prompted(model, self.kept["prompts"], self.kept["keys"], self.choose)
