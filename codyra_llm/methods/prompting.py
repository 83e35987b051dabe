"""What methods that learn prompts have in common: vectors before the tokens of a row, beside untouched weights."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import Deltas, ModuleRank, unwrap
from codyra_llm.adapter.prompts import PromptedEmbedding, add_prompts, prompts_of
from codyra_llm.errors import UserError
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import RowPasses

if TYPE_CHECKING:
    from codyra_llm.example import Example


class Prompting(Method):
    """Prompts that the optimizer of branches trains, by the gradient that passes through the whole frozen model.

    A row's prompts stand before its first token, are no targets, and are chosen by its query: the mean input embedding
    of its own tokens, whatever rows share its batch. They start as embeddings of tokens of the rows that are learned
    then, drawn by the seed. Nothing is merged, the ledger's entries are empty, and the saved model is the base;
    `adapter` has no part in it. Serving needs this program, which alone knows the ids of prompts.
    """

    needs = Needs(first_task=True, whole_updates=True, domains=("text",))
    learns_keys: bool = False
    sees_answers: bool = False  # in the queries of training rows

    vectors: int  # that train
    keys: int
    start: torch.Tensor  # what those vectors start a task as, [vectors, hidden_size]

    def check_run(self, zero_stage: int) -> None:
        """As the base class; rows must begin where a batch does, and the model before a task must be the bare one."""
        super().check_run(zero_stage)
        if self.config.data.packing == "pack":
            raise UserError(
                f"method {self.name}: prompts precede each row of a batch, and packed rows are one; set "
                "data.packing bucket"
            )
        if self.config.retention.measures or self.config.retention.protected:
            raise UserError(
                f"method {self.name}: it merges nothing, so that the model without its part does not show what earlier "
                "tasks have taught; leave retention.* at 0"
            )

    def wrap(self, model: nn.Module) -> list[str]:
        """Prompts in the place of branches."""
        try:
            name, layer = add_prompts(model, self.vectors, self.keys, self.choose, self.sees_answers)
        except ValueError as error:
            raise UserError(f"method {self.name}: {error}") from None
        layer.B.requires_grad_(self.learns_keys)
        return [name]

    def choose(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The vectors before each row of a task in training, by number [rows, any]; by default all of them."""
        return torch.arange(self.vectors, device=queries.device).expand(len(queries), -1)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """The vectors as measured before the task."""
        layer.A.copy_(self.start)

    def words(self, rows: "Sequence[Example]", passes: RowPasses, count: int, draw: str) -> torch.Tensor:
        """Embeddings of tokens of some rows [count, hidden_size], drawn by (seed, name of the draw)."""
        ids = sorted({token for row in rows for token in (*row.prompt, *row.answer)})
        drawn = random.Random(f"{self.config.seed}/{self.name}/{draw}").choices(ids, k=count)
        return passes.embedding_means([[token] for token in drawn])

    def queries(self, rows: "Sequence[Example]", passes: RowPasses) -> torch.Tensor:
        """The query of each training row, [rows, hidden_size]."""
        return passes.embedding_means([row.prompt + row.answer * self.sees_answers for row in rows])

    def keep(self, layer: PromptedEmbedding) -> None:
        """Puts what a task has learned into `kept`."""
        raise NotImplementedError

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """The prompts are kept, and not merged; norm and bound are those of how far they have moved."""
        layer = prompts_of(model)
        assert layer
        self.keep(layer)
        moved = float((layer.A.detach().cpu() - self.start).norm())
        (name,) = (name for name, module in model.named_modules() if module is layer)
        unwrap(model)
        return [ModuleRank(name, self.vectors, self.vectors, moved, moved)], {}


def similarity(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Cosines [rows, keys] of queries [rows, hidden_size] with keys [hidden_size, keys]."""
    return functional.normalize(queries) @ functional.normalize(keys, dim=0)
