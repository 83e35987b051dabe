"""Prompts: vectors that are trained instead of branches and are read before the tokens of a row.

A prompt's vector has a token id of its own, beyond the vocabulary, so a row with its prompts is a row of ids like any
other: padding, caching and sharing work unchanged, and only the input embedding interprets these ids.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from codyra_llm.adapter.injection import replace_module
from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merging import unwrap

# (queries [rows, hidden_size], keys [hidden_size, keys]) -> the numbers of the vectors that are put before each row
Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [rows, any]


class PromptedEmbedding(CoDyRALinear):
    """An input embedding E [vocabulary, hidden_size], frozen, whose ids from `vocabulary` on are vectors of A.

    A [vectors, hidden_size] contains the prompts, B [hidden_size, keys] the keys that select them; both fp32. It is a
    gated layer with its gate frozen at one, so that optimizer, checkpoints and ZeRO treat it like a branch.

    Args:
        base: the embedding.
        vectors: number of vectors, at least one.
        keys: number of keys, at least one.
        choose: selects the vectors that are put before a row.
        whole_rows: whether the query of a row is computed from all its tokens in training.
    """

    base: nn.Embedding

    def __init__(self, base: nn.Embedding, vectors: int, keys: int, choose: Choose, whole_rows: bool = False) -> None:
        nn.Module.__init__(self)
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim
        self.choose, self.whole_rows = choose, whole_rows
        weight = base.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        new: dict[str, Any] = {"dtype": dtype, "device": weight.device}
        self.A = nn.Parameter(torch.zeros(vectors, self.out_features, **new))
        self.B = nn.Parameter(torch.zeros(self.out_features, keys, **new))
        self.gate = nn.Parameter(torch.ones(vectors, **new), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the embedding."""
        return self.base.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Ids [...] -> [..., hidden_size]."""
        words = self.base(input.clamp(max=self.in_features - 1))
        vectors = self.A + 0 * self.B.sum()  # keeps the keys in the graph, as a method may add to their gradient
        numbers = (input - self.in_features).clamp(0, len(vectors) - 1)
        of_prompts = functional.embedding(numbers, vectors).to(words.dtype)
        return torch.where((input >= self.in_features)[..., None], of_prompts, words)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (B, A): keys and prompts, whose product is not an update."""
        return self.B.detach(), self.A.detach()

    @torch.no_grad()
    def chosen(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Returns the ids that are put before each row, [rows, any].

        Args:
            ids: [rows, tokens].
            lengths: for each row, the number of its first tokens whose mean embedding is the query.
        """
        states = self.base(ids)
        queries = torch.stack([mean_state(of_row[:length]) for of_row, length in zip(states, lengths, strict=True)])
        return self.choose(queries, self.B) + self.in_features


def mean_state(states: torch.Tensor) -> torch.Tensor:
    """Returns the mean [hidden_size] of a row's states [tokens, hidden_size], in fp32 or wider."""
    return states.to(torch.promote_types(states.dtype, torch.float32)).mean(0)


def prompts_of(model: Any) -> PromptedEmbedding | None:
    """Returns the model's input embedding if it has enabled prompts, else None."""
    layer = model.get_input_embeddings()
    return layer if isinstance(layer, PromptedEmbedding) and layer.enabled else None


def with_prompts(model: Any, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Returns rows of ids as the model reads them: each after the prompts that its own tokens select, if any."""
    layer = prompts_of(model)
    if layer is None:
        return rows
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    before = layer.chosen(ids.to(layer.A.device), list(map(len, rows))).tolist()
    return [[*prompt, *row] for prompt, row in zip(before, rows, strict=True)]


def add_prompts(
    model: Any, vectors: int, keys: int, choose: Choose, whole_rows: bool = False
) -> tuple[str, PromptedEmbedding]:
    """Freezes a model and adds prompts, all zero, in place; returns (name of the embedding, the embedding).

    Raises:
        ValueError: the model reads ids outside its input embedding as well.
    """
    if any("per_layer" in name and isinstance(module, nn.Embedding) for name, module in model.named_modules()):
        raise ValueError(f"{type(model).__name__} reads ids beside its input embedding, where a prompt has no meaning")
    embedding = model.get_input_embeddings()
    name: str = next(name for name, module in model.named_modules() if module is embedding)
    model.requires_grad_(False)
    layer = PromptedEmbedding(embedding, vectors, keys, choose, whole_rows)
    replace_module(model, name, layer)
    return name, layer


@contextmanager
def prompted(model: Any, vectors: torch.Tensor, keys: torch.Tensor, choose: Choose) -> Iterator[None]:
    """A context in which a model reads prompts: vectors [vectors, hidden_size], keys [hidden_size, keys]."""
    _, layer = add_prompts(model, len(vectors), keys.shape[1], choose)
    with torch.no_grad():
        layer.A.copy_(vectors)
        layer.B.copy_(keys)
    try:
        yield
    finally:
        unwrap(model)
