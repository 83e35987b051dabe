"""L2P: a pool of prompts; each row reads those whose keys are nearest to its query (arXiv 2112.08654)."""

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
    """Settings of the pool of prompts and of their keys."""

    pool: int = option(10, "prompts in the pool", within=AT_LEAST_ONE)
    length: int = option(5, "vectors of a prompt", within=AT_LEAST_ONE)
    selected: int = option(3, "prompts that are put before a row; 0: none, the model as it is", within=AT_LEAST_ZERO)
    pull: float = option(0.5, "weight of the similarity of rows with the keys that they choose", within=AT_LEAST_ZERO)
    repaired: bool = option(False, "whether keys are learned, and chosen by a row's prompt alone in training as well")


class L2P(Prompting):
    """L - pull * mean over a step's rows of sum cos(q, k_i) over the `selected` nearest keys, whose prompts are read.

    q is the row's query, k_i one of `pool` keys. By default it does what was released for language models (TRACE),
    which is not what the paper describes: k_i stays the mean of prompt i's initial vectors, and the gradient for it
    updates the prompt instead (through the graph of the mean), so the prompts that a row reads never change; queries of
    training rows cover prompt and answer, those of test rows the prompt only. With `repaired`, as in the paper, keys
    are separate parameters that start at these means and are trained by the term alone, and every query covers the
    row's prompt only.

    Differences from the released code: its query includes padding, so that a row's prompts depend on its batch, and its
    prefix has the label of the batch's first token; here the term is one mean over all ranks and micro batches. The
    paper's query is the feature of a frozen encoder. Kept: "prompts" [pool * length, hidden_size] and "keys"
    [hidden_size, pool], which every task continues to train.
    """

    name = "l2p"
    summary = "L2P: prompts of a pool before each row, chosen by its likeness with their keys, none of them merged"
    Settings = L2PSettings

    _queries: torch.Tensor  # of the rows of the task in training
    _keys: torch.Tensor
    _rows: Sequence[int] = ()  # of the current step

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        settings: L2PSettings = self.settings
        self.vectors, self.keys = settings.pool * settings.length, settings.pool
        self.learns_keys, self.sees_answers = settings.repaired, not settings.repaired

    def check_run(self, zero_stage: int) -> None:
        """Checks the run as the base class does, and that no more prompts are selected than the pool has."""
        super().check_run(zero_stage)
        if self.settings.selected > self.settings.pool:
            raise UserError(
                f"method l2p: l2p.selected is {self.settings.selected}, the pool has {self.settings.pool} prompts; "
                "lower it"
            )

    @property
    def added_tokens(self) -> int:
        """Number of vectors of the prompts that a row reads."""
        return int(self.settings.selected * self.settings.length)

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes the queries of the task's rows; for the first task also the initial prompts and keys."""
        self._queries = self.queries(rows, passes)
        if "prompts" in self.kept:
            self.start, self._keys = self.kept["prompts"], self.kept["keys"]
        else:
            self.start = self.words(rows, passes, self.vectors, "pool")
            self._keys = self._means(self.start)

    def _means(self, prompts: torch.Tensor) -> torch.Tensor:
        return prompts.unflatten(0, (self.keys, -1)).mean(1).T

    def choose(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of the nearest prompts, nearest first."""
        length = self.settings.length
        nearest = similarity(queries, keys).topk(self.settings.selected).indices
        return (nearest[..., None] * length + torch.arange(length, device=nearest.device)).flatten(1)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Writes the current prompts and keys of the pool."""
        super().start_branch(name, layer)
        layer.B.copy_(self._keys)

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """Stores the numbers of the step's rows, which the term averages over."""
        self._rows = passes.rows_of(step)

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns the term and its gradient for the keys (`repaired`) or the prompts."""
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
        """Keeps the prompts and keys of the pool."""
        self.kept = {"prompts": layer.A.detach().cpu().clone(), "keys": layer.B.detach().cpu().clone()}

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[None]:
        """Returns a context in which each row reads the prompts nearest to its query; `task` is not used."""
        if not self.kept:  # the base model
            return nullcontext()
        return prompted(model, self.kept["prompts"], self.kept["keys"], self.choose)
