"""The base of methods that learn prompts: vectors before the tokens of a row; the weights do not change."""

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
    """Prompts that train in place of branches, with the gradient through the whole frozen model.

    A row's prompts are inserted before its first token, are no targets of the loss, and are chosen by the row's query:
    the mean input embedding of its own tokens, independent of the other rows of its batch. They are initialized with
    embeddings of tokens of the rows of the task in training, drawn by the seed. Nothing is merged, the ledger's entries
    are empty, and the saved model is the base; the `adapter` settings are not used. Serving requires this program: no
    other knows the token ids of prompts.
    """

    needs = Needs(first_task=True, whole_updates=True, domains=("text",))
    learns_keys: bool = False
    sees_answers: bool = False  # whether queries of training rows include the answer

    vectors: int  # number of vectors that train
    keys: int  # number of keys
    start: torch.Tensor  # initial values of the vectors in a task, [vectors, hidden_size]

    def check_run(self, zero_stage: int) -> None:
        """Checks the run as the base class does; rejects packed rows and retention."""
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
        """Adds prompts to the input embedding instead of branches; returns the name of the embedding."""
        try:
            name, layer = add_prompts(model, self.vectors, self.keys, self.choose, self.sees_answers)
        except ValueError as error:
            raise UserError(f"method {self.name}: {error}") from None
        layer.B.requires_grad_(self.learns_keys)
        return [name]

    def choose(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Returns the numbers of the vectors before each training row, [rows, any]; by default all of them."""
        return torch.arange(self.vectors, device=queries.device).expand(len(queries), -1)

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Writes the initial vectors, which were computed before the task."""
        layer.A.copy_(self.start)

    def words(self, rows: "Sequence[Example]", passes: RowPasses, count: int, draw: str) -> torch.Tensor:
        """Returns embeddings of tokens of the rows [count, hidden_size], drawn by (seed, method, `draw`)."""
        ids = sorted({token for row in rows for token in (*row.prompt, *row.answer)})
        drawn = random.Random(f"{self.config.seed}/{self.name}/{draw}").choices(ids, k=count)
        return passes.embedding_means([[token] for token in drawn])

    def queries(self, rows: "Sequence[Example]", passes: RowPasses) -> torch.Tensor:
        """Returns the query of each training row, [rows, hidden_size]."""
        return passes.embedding_means([row.prompt + row.answer * self.sees_answers for row in rows])

    def keep(self, layer: PromptedEmbedding) -> None:
        """Stores the learned prompts and keys of a task in `kept`."""
        raise NotImplementedError

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        """Keeps the prompts instead of merging them; the reported norm and bound are the norm of their change."""
        layer = prompts_of(model)
        assert layer
        self.keep(layer)
        moved = float((layer.A.detach().cpu() - self.start).norm())
        (name,) = (name for name, module in model.named_modules() if module is layer)
        unwrap(model)
        return [ModuleRank(name, self.vectors, self.vectors, moved, moved)], {}


def similarity(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Returns the cosines [rows, keys] of queries [rows, hidden_size] with keys [hidden_size, keys]."""
    return functional.normalize(queries) @ functional.normalize(keys, dim=0)
