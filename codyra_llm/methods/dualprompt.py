"""DualPrompt: a prompt shared by all tasks, and one per task, which a row selects by its key (arXiv 2204.04799)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.prompts import PromptedEmbedding, prompted
from codyra_llm.methods.hooks import RowPasses
from codyra_llm.methods.prompting import Prompting, similarity
from codyra_llm.options import AT_LEAST_ONE, AT_LEAST_ZERO, option

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig
    from codyra_llm.example import Example

GENERAL, OWN, KEY = "general", "prompt/", "key/"  # names in `kept`; the last two are prefixes of a task's name


@dataclass(frozen=True)
class DualPromptSettings:
    """Settings of the prompts, and of how a row's task prompt is chosen."""

    general: int = option(2, "vectors that all tasks share", within=AT_LEAST_ZERO)
    task: int = option(3, "vectors of each task's own", within=AT_LEAST_ONE)
    by: Literal["key", "oracle"] = option(
        "key", "key: the nearest key, no task is told; oracle: the row's task is told, as the released port has it"
    )


class DualPrompt(Prompting):
    """[general; task t's own; row]: every task trains the general vectors, only task t's rows train its own vectors.

    A task's key k has to minimize the paper's matching loss, the sum of 1 - cos(q, k) over the queries q of its
    training rows. The mean of q / |q| does so; the key is set to this mean and is not trained. A test row, or a row of
    a general-ability suite, reads the own vectors of the task whose key is nearest by cosine. With `by: oracle` (as in
    the released port for language models, whose keys are neither used nor trained) the row's task is given; rows of a
    task that is not learned yet, and rows of general ability, then read the general vectors alone. The results report
    how often the nearest key is that of the row's task.

    Differences from the paper: vectors are inserted at the input, as in the port, not as keys and values of chosen
    layers; a query is the mean input embedding of a row's prompt. Kept: "general" [general, hidden_size], and for each
    task "prompt/<task>" [task, hidden_size] and "key/<task>" [hidden_size].
    """

    name = "dualprompt"
    summary = "DualPrompt: vectors of all tasks and of the row's own, by key or oracle, before each row, none merged"
    Settings = DualPromptSettings
    keys = 1

    _key: torch.Tensor  # of the task in training

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        self.vectors = self.settings.general + self.settings.task

    @property
    def added_tokens(self) -> int:
        """Number of vectors before each row: general and own."""
        return self.vectors

    @property
    def _tasks(self) -> list[str]:
        return [name.removeprefix(KEY) for name in self.kept if name.startswith(KEY)]

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Computes the task's key and the initial prompts."""
        self._key = functional.normalize(self.queries(rows, passes)).mean(0)
        new = self.words(rows, passes, self.vectors, str(len(self._tasks)))
        count = self.settings.general
        self.start = torch.cat([self.kept.get(GENERAL, new[:count]), new[count:]])

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        """Writes the initial vectors, and the key, which training does not use because the task is known."""
        super().start_branch(name, layer)
        layer.B.copy_(self._key[:, None])

    def keep(self, layer: PromptedEmbedding) -> None:
        """Keeps the general vectors, the task's own vectors, which no later task changes, and its key."""
        count = self.settings.general
        general, own = (part.detach().cpu().clone() for part in (layer.A[:count], layer.A[count:]))
        self.kept |= {GENERAL: general, OWN + self.task: own, KEY + self.task: self._key}

    def _nearest(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Returns the number of the task whose key is nearest, [rows]; keys: [hidden_size, tasks]."""
        return similarity(queries, keys).argmax(1)

    def _all_keys(self) -> torch.Tensor:
        return torch.stack([self.kept[KEY + task] for task in self._tasks], dim=1)

    def routes(self, rows: "Sequence[Example]", passes: RowPasses) -> list[str] | None:
        """Returns the task of each row's nearest key; None with an oracle."""
        if self.settings.by == "oracle":
            return None
        queries = passes.embedding_means([row.prompt for row in rows])
        return [self._tasks[number] for number in self._nearest(queries, self._all_keys()).tolist()]

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[None]:
        """Puts general vectors, and those of the given task or of each row's nearest key, before each row.

        With an oracle, rows of general ability and of tasks not learned yet read the general vectors alone.
        """
        general, own, tasks = self.settings.general, self.settings.task, self._tasks
        if not tasks:  # the base model
            return nullcontext()
        vectors = torch.cat([self.kept[GENERAL], *(self.kept[OWN + each] for each in tasks)])

        def choose(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
            device = queries.device
            shared = torch.arange(general, device=device).expand(len(queries), -1)
            if task not in tasks and self.settings.by == "oracle":
                return shared
            numbers = self._nearest(queries, keys)
            if task in tasks:
                numbers = torch.full_like(numbers, tasks.index(task))
            return torch.cat([shared, general + numbers[:, None] * own + torch.arange(own, device=device)], dim=1)

        return prompted(model, vectors, self._all_keys(), choose)
