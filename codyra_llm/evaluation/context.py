"""What a model has read: the KV cache of a batch of rows, which reads on, forgets, and lets rows go."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

ONE_PASS = 64  # columns; a further pass over the weights must save more than that


class Context:
    """Rows of tokens as a causal model has read them.

    Columns of the cache are allocated once: reading on writes into them, and the rows that stay never move. A column
    may be empty for a row, at its left or between two reads: `mask` says which are, and positions count only tokens.

    Args:
        model: a causal LM of transformers; its decoder alone is run.
        rows: how many.
        columns: the most that will ever be held.
        pad: the id in empty columns.
    """

    def __init__(self, model: PreTrainedModel, rows: int, columns: int, pad: int) -> None:
        self.model, self.decoder, self.pad = model, model.get_decoder(), pad
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [_Columns(columns) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    @classmethod
    def of(
        cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], spare: int, pad: int, sharing: bool = True
    ) -> tuple["Context", torch.Tensor]:
        """Prompts as read, with room for `spare` columns, and the hidden state of each one's last token [rows, hidden].

        A beginning that several prompts have in common is read once, where `sharing` and the model allow it.
        """
        widest = max(map(len, prompts))
        groups = _groups(prompts) if sharing else []
        shared = max((group.prefix for group in groups), default=0)
        if not shared or _window(model) < shared + widest + spare:
            context = cls(model, len(prompts), widest + spare, pad)
            return context, context.read(prompts)[:, -1]
        shared_by = [group for group in groups if group.prefix]
        prefixes = cls(model, len(shared_by), shared, pad)
        prefixes.read([prompts[group.rows[0]][: group.prefix] for group in shared_by])
        source, skip = [0] * len(prompts), [0] * len(prompts)
        for number, group in enumerate(shared_by):
            for row in group.rows:
                source[row], skip[row] = number, group.prefix
        rest = [prompt[done:] for prompt, done in zip(prompts, skip, strict=True)]
        context = prefixes._copied(source, shared + max(map(len, rest)) + spare)
        context.mask *= torch.tensor(skip, device=context.mask.device)[:, None] > 0
        return context, context.read(rest)[:, -1]

    def read(self, rows: Sequence[Sequence[int]], to_the_left: bool = False) -> torch.Tensor:
        """Reads on -> hidden states [rows, columns, hidden]; shorter rows have empty columns before their tokens.

        Args:
            rows: ids, of each row; a row may have none.
            to_the_left: empty columns come after the tokens instead.
        """
        width = max(1, *map(len, rows))
        ids = torch.full((len(rows), width), self.pad)
        seen = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            place = slice(0, len(row)) if to_the_left else slice(width - len(row), width)
            ids[k, place], seen[k, place] = torch.tensor(row, dtype=torch.long), 1
        ids, seen = ids.to(self.mask.device), seen.to(self.mask.device)
        positions = self.mask.sum(1, keepdim=True) + seen.cumsum(1) - 1
        self.mask = torch.cat([self.mask, seen], dim=1)
        output = self.decoder(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def forget(self, columns: int) -> None:
        """Takes back the last columns."""
        self.mask = self.mask[:, : self.mask.shape[1] - columns]
        for layer in self.layers:
            layer.length -= columns

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Lets all other rows go; returns the old numbers of those that stay, in their new order."""
        order, late = list(range(len(rows))), [row for row in rows if row >= len(rows)]
        for slot in set(order) - set(rows):
            order[slot] = late.pop()
        moved = [slot for slot, row in enumerate(order) if slot != row]
        self.mask = self.mask[order]
        for layer in self.layers:
            layer.move([order[slot] for slot in moved], moved, len(order))
        return order

    def _copied(self, rows: list[int], columns: int) -> "Context":
        """A context of these rows, any number of times each, with room for so many columns."""
        copy = Context(self.model, len(rows), columns, self.pad)
        copy.mask = self.mask[rows]
        for source, target in zip(self.layers, copy.layers, strict=True):
            held = slice(0, source.length)
            target.update(source.keys[rows, :, held], source.values[rows, :, held])
        return copy


class _Columns(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, head_dim], of which the first `length` columns are held.

    Sliding layers hold all columns as well: their window is in the attention mask.
    """

    is_sliding = False

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.length = columns, 0
        self.keys: torch.Tensor
        self.values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates all columns, like the first that come."""
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], self.columns, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds columns; returns all that are held, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, first : self.length] = key_states
        self.values[:, :, first : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def move(self, sources: list[int], targets: list[int], rows: int) -> None:
        """Copies rows onto others and holds the first `rows` from then on."""
        for states in (self.keys, self.values):
            states[targets, :, : self.length] = states[sources, :, : self.length]
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def get_seq_length(self) -> int:
        """Columns held."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns of a mask for so many new ones, the first one's number)."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Columns there is room for."""
        return self.columns


class _Group(NamedTuple):
    """Rows and how many tokens all of them begin with; 0 where reading those apart saves nothing."""

    rows: list[int]
    prefix: int


def tokens_read(prompts: Sequence[Sequence[int]]) -> int:
    """How many columns a model goes through, about, when it reads these prompts together, empty ones among them."""
    return _columns(prompts, _groups(prompts))


def _columns(prompts: Sequence[Sequence[int]], groups: Sequence[_Group]) -> int:
    shared = [group.prefix for group in groups if group.prefix]
    rest = max(len(prompts[row]) - group.prefix for group in groups for row in group.rows)
    return len(shared) * max(shared, default=0) + len(prompts) * rest + (ONE_PASS if shared else 0)


def _groups(prompts: Sequence[Sequence[int]]) -> list[_Group]:
    """Rows by shared beginnings; each row is in one group, and has at least one token beyond what is shared."""
    groups: list[_Group] = []
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        if groups:
            rows, prefix = groups[-1]
            common = _common(prompts[rows[0]][:prefix], prompts[row][:-1])
            # with one row more, the others read again what it does not share with them
            if common and (prefix - common) * len(rows) < prefix:
                groups[-1] = _Group([*rows, row], common)
                continue
        groups.append(_Group([row], len(prompts[row]) - 1))
    groups.sort(key=lambda group: group.prefix * (len(group.rows) - 1), reverse=True)
    most = sum(len(group.rows) > 1 for group in groups)
    candidates = [
        [*groups[:shared], *(_Group(group.rows, 0) for group in groups[shared:])] for shared in range(most + 1)
    ]
    return min(candidates, key=lambda groups: _columns(prompts, groups))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _window(model: PreTrainedModel) -> float:
    """Columns that the narrowest layer sees: counted in columns, so empty ones in between would take places in it."""
    config = model.config.get_text_config()
    return config.sliding_window or float("inf") if hasattr(config, "sliding_window") else float("inf")
