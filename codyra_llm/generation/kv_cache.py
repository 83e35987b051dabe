"""A batched KV cache with rollback, row eviction and shared prefixes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"
ONE_PASS = 64  # columns that an additional pass over the weights must save


class Context:
    """The KV cache of a batch of rows that a causal model has read.

    Columns of the cache are allocated once: reading more tokens writes into them, and remaining rows do not move. A
    column may be empty for a row: at its left, between two reads, or where tokens were removed (`forget`). `mask` is 0
    for empty columns, and positions count only tokens. When no column is left, the empty ones of each row are removed.

    Args:
        model: a causal LM of transformers; only its decoder is run.
        rows: number of rows.
        columns: largest number of columns.
        pad: the id in empty columns.
        in_step: whether each read must be one forward pass, because other ranks take part in it.

    Attributes:
        gaps: whether empty columns between tokens have no effect; in a sliding window they would take up positions.
    """

    def __init__(self, model: PreTrainedModel, rows: int, columns: int, pad: int, in_step: bool = False) -> None:
        self.model, self.decoder, self.pad, self.in_step = model, model.get_decoder(), pad, in_step
        self.columns, self.gaps = columns, columns <= _window(model)
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [_Columns(rows, columns) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    @classmethod
    def of(
        cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], spare: int, pad: int, in_step: bool = False
    ) -> tuple["Context", torch.Tensor]:
        """Reads prompts; returns the context and the hidden state of each prompt's last token [rows, hidden].

        A shared prefix of several prompts is read once, unless `in_step` or the model's sliding window prevents it.

        Args:
            model, pad, in_step: as for the class.
            prompts: ids of each prompt.
            spare: number of further columns to allocate.
        """
        widest = max(map(len, prompts))
        groups = [] if in_step else _groups(prompts)
        shared = max((group.prefix for group in groups), default=0)
        if not shared or _window(model) < shared + widest + spare:
            context = cls(model, len(prompts), widest + spare, pad, in_step)
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
        """Reads further tokens; returns hidden states [rows, columns, hidden]; shorter rows are padded on the left.

        Rows much shorter than others are read in a separate pass, so that few empty columns are computed; hidden states
        that are not computed are zero.

        Args:
            rows: new ids of each row; a row may have none.
            to_the_left: whether to align tokens to the left, with padding on the right.
        """
        width = max(1, *map(len, rows))
        if self.mask.shape[1] + width > self.columns:
            self._close_gaps()
        ids = torch.full((len(rows), width), self.pad)
        seen = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            place = slice(0, len(row)) if to_the_left else slice(width - len(row), width)
            ids[k, place], seen[k, place] = torch.tensor(row, dtype=torch.long), 1
        ids, seen = ids.to(self.mask.device), seen.to(self.mask.device)
        positions = (self.mask.sum(1, keepdim=True) + seen.cumsum(1) - 1).clamp(min=0)
        first = self.mask.shape[1]
        self.mask = torch.cat([self.mask, seen], dim=1)
        passes = [list(range(len(rows)))] if self.in_step else _passes([len(row) for row in rows])
        if len(passes[0]) == len(rows):
            return self._run(ids, self.mask, positions)
        reads = []
        for together in passes:
            longest = max(len(rows[row]) for row in together)
            begin = 0 if to_the_left else width - longest
            part, columns = torch.tensor(together, device=ids.device), slice(begin, begin + longest)
            for layer in self.layers:
                layer.part, layer.length = part, first + begin
            states = self._run(ids[part, columns], self.mask[part, : first + columns.stop], positions[part, columns])
            reads.append((part, columns, states))
        for layer in self.layers:
            layer.part, layer.length = None, first + width
        hidden = states.new_zeros(len(rows), width, states.shape[2])
        for part, columns, states in reads:
            hidden[part, columns] = states
        return hidden

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with _no_copies_of_keys(ids.device):
            output = self.decoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        return output.last_hidden_state

    def forget(self, columns: int, but: Sequence[int] | None = None) -> None:
        """Removes the last columns from the cache.

        Args:
            columns: number of columns.
            but: number of these columns that each row keeps, from the first of them on; None: none.
        """
        most = max(but) if but else 0
        self.mask = self.mask[:, : self.mask.shape[1] + most - columns]
        for layer in self.layers:
            layer.length += most - columns
        if but:
            kept = torch.tensor(but, device=self.mask.device)[:, None]
            self.mask[:, -most:] *= torch.arange(most, device=self.mask.device) < kept

    def _close_gaps(self) -> None:
        order = self.mask.argsort(dim=1, stable=True)[:, -int(self.mask.sum(1).max()) :]  # the empty ones first
        self.mask = self.mask.gather(1, order)
        for layer in self.layers:
            layer.arrange(order)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Removes all other rows; returns the old numbers of the remaining rows, in their new order."""
        order, late = list(range(len(rows))), [row for row in rows if row >= len(rows)]
        for slot in set(order) - set(rows):
            order[slot] = late.pop()
        moved = [slot for slot, row in enumerate(order) if slot != row]
        self.mask = self.mask[order]
        for layer in self.layers:
            layer.move([order[slot] for slot in moved], moved, len(order))
        return order

    def _copied(self, rows: list[int], columns: int) -> "Context":
        """Returns a context with copies of these rows, each any number of times, with room for `columns` columns."""
        copy = Context(self.model, len(rows), columns, self.pad)
        copy.mask = self.mask[rows]
        for source, target in zip(self.layers, copy.layers, strict=True):
            filled = slice(0, source.length)
            target.update(source.keys[rows, :, filled], source.values[rows, :, filled])
        return copy


class _Columns(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, head_dim], of which the first `length` columns are in use.

    Sliding-window layers keep all columns as well: their window is in the attention mask. If `part` is set, only the
    rows in it are read and written.
    """

    is_sliding = False

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns, self.length = rows, columns, 0
        self.part: torch.Tensor | None = None
        self.keys: torch.Tensor
        self.values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates all columns in the dtype and on the device of the first; zeros, as masked values enter products."""
        self.keys, self.values = (
            states.new_zeros(self.rows, states.shape[1], self.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds columns; returns all used columns of the rows that are read, as views if these are all rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.length = self.length, self.length + key_states.shape[2]
        rows = slice(None) if self.part is None else self.part
        self.keys[rows, :, first : self.length] = key_states
        self.values[rows, :, first : self.length] = value_states
        return self.keys[rows, :, : self.length], self.values[rows, :, : self.length]

    def move(self, sources: list[int], targets: list[int], rows: int) -> None:
        """Copies rows onto others, then keeps the first `rows` rows."""
        for states in (self.keys, self.values):
            states[targets, :, : self.length] = states[sources, :, : self.length]
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def arrange(self, order: torch.Tensor) -> None:
        """Keeps these columns of each row, in this order; order: [rows, columns]."""
        old_length, self.length = self.length, order.shape[1]
        for states in (self.keys, self.values):
            states[:, :, : self.length] = states[:, :, :old_length].take_along_dim(order[:, None, :, None], dim=2)

    def get_seq_length(self) -> int:
        """Returns the number of columns in use."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns (columns of the mask for `query_length` new ones, the number of its first column)."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Returns the number of allocated columns."""
        return self.columns


class _Group(NamedTuple):
    """Rows and the length of their shared prefix; 0 if reading it separately saves nothing."""

    rows: list[int]
    prefix: int


def tokens_read(prompts: Sequence[Sequence[int]]) -> int:
    """Returns about how many columns a model computes when it reads these prompts together, including empty ones."""
    return _columns(prompts, _groups(prompts))


def _columns(prompts: Sequence[Sequence[int]], groups: Sequence[_Group]) -> int:
    rest = [len(prompts[row]) - group.prefix for group in groups for row in group.rows]
    return _cost([group.prefix for group in groups]) + _cost(rest)


def _cost(lengths: Sequence[int]) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) + ONE_PASS for rows in _passes(lengths))


def _passes(lengths: Sequence[int]) -> list[list[int]]:
    """Returns the rows of each pass, such that the cost of all passes is least; rows without tokens are left out."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
    # rows of equal length stay together, so if all have the same, as in decoding, there is nothing to choose
    ends = [end for end in range(1, len(order)) if lengths[order[end - 1]] != lengths[order[end]]] + [len(order)]
    best = {0: (0, 0)}  # number of longest rows -> (least cost, where their last pass begins)
    for end in filter(None, ends):
        best[end] = min(
            (cost + (end - begin) * lengths[order[begin]] + ONE_PASS, begin) for begin, (cost, _) in best.items()
        )
    passes, end = [], len(order)
    while end:
        passes.append(order[best[end][1] : end])
        end = best[end][1]
    return passes[::-1]


def _groups(prompts: Sequence[Sequence[int]]) -> list[_Group]:
    """Groups rows by shared prefixes; each row is in one group, and is at least one token longer than the prefix."""
    groups: list[_Group] = []
    for row in sorted(range(len(prompts)), key=lambda row: list(prompts[row])):
        if groups:
            rows, prefix = groups[-1]
            alike = common(prompts[rows[0]][:prefix], prompts[row][:-1])
            # with this row in the group, the others must read the part of their prefix that it does not share
            if alike and (prefix - alike) * len(rows) < prefix:
                groups[-1] = _Group([*rows, row], alike)
                continue
        groups.append(_Group([row], len(prompts[row]) - 1))
    groups.sort(key=lambda group: group.prefix * (len(group.rows) - 1), reverse=True)
    most = sum(len(group.rows) > 1 for group in groups)
    candidates = [
        [*groups[:shared], *(_Group(group.rows, 0) for group in groups[shared:])] for shared in range(most + 1)
    ]
    return min(candidates, key=lambda groups: _columns(prompts, groups))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the length of the common prefix."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@contextmanager
def _no_copies_of_keys(device: torch.device) -> Iterator[None]:
    """A context in which transformers' attention does not copy shared (GQA) keys for each query head, on a CPU.

    With a mask, transformers copies them otherwise, which is many times the work of a few tokens after a long context.
    GPU kernels need the copies.
    """
    if device.type != "cpu" or GROUPED in os.environ:
        yield
        return
    os.environ[GROUPED] = "1"
    try:
        yield
    finally:
        del os.environ[GROUPED]


def _window(model: PreTrainedModel) -> float:
    """Returns the sliding window of the model, inf if it has none; it counts columns, including empty ones."""
    config = model.config.get_text_config()
    return config.sliding_window or float("inf") if hasattr(config, "sliding_window") else float("inf")
