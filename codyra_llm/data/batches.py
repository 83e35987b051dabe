"""Batches of a fixed global size: which rows an optimizer step sees never depends on how many devices run it."""

import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from codyra_llm.errors import UserError
from codyra_llm.example import Example

IGNORED = -100
MOST_STEPS = 2**31


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes in one forward pass; `labels` is IGNORED but at answer tokens. All [rows, tokens].

    `position_ids` is there where examples are packed into one row: it starts again with each of them. `numbers` are
    those of the examples in the task's rows, in order; a pass that has none reads padding and learns nothing. `kinds`
    says at which positions the model is kept at what it was before, and `known` what it was, where that is measured
    (engine/retention.py).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None
    numbers: tuple[int, ...] = ()
    kinds: torch.Tensor | None = None
    known: torch.Tensor | None = None


class GlobalBatches:
    """The optimizer steps of one task as a pure function of (seed, task, step).

    The rows are read in shuffled passes that follow each other without a gap, so every row is seen equally often
    (up to one) and every step has exactly `global_batch_size` rows. How they are dealt out in micro batches is the
    packing's matter; the loss of a step is a sum over its answer tokens, so that changes nothing but the padding:

    - none: in the order of the pass; the shorter ones are padded.
    - bucket: sorted by length, neighbours together; the shorter ones are padded.
    - pack: sorted by length, and laid end to end in one row without padding.

    Args:
        examples: the task's rows.
        global_batch_size, micro_batch_size: rows of a step over all ranks; the most of one forward pass.
        epochs: passes over the rows; the number of steps is rounded down.
        steps: optimizer steps, in the place of passes.
        seed, task: what the order of rows depends on.
        world_size: number of ranks.
        pad_token_id: id that fills rows up.
        packing: none, bucket or pack.
        replayed: rows of earlier tasks, which are shuffled together with the task's own.
        lengthened: whether those add steps; else they take the place of some of the task's own rows.

    Where the rows of a step do not fill the passes of all ranks, the last passes have fewer, or none.

    Raises:
        UserError: the rows do not fill one step, or there are more steps than anyone can wait for.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        global_batch_size: int,
        micro_batch_size: int,
        epochs: float,
        seed: int,
        task: str,
        world_size: int = 1,
        pad_token_id: int = 0,
        packing: str = "bucket",
        replayed: Sequence[Example] = (),
        lengthened: bool = False,
        steps: int | None = None,
    ) -> None:
        self.own, self.examples = examples, [*examples, *replayed] if replayed else examples
        self.global_batch_size = global_batch_size
        self.micro_batch_size, self.accumulation = divide_batch(global_batch_size, micro_batch_size, world_size)
        self.seed, self.task, self.world_size, self.pad_token_id = seed, task, world_size, pad_token_id
        self.packing = packing
        counted = self.examples if lengthened else examples
        self.total_steps = steps or int(len(counted) * epochs + 1e-9) // global_batch_size
        if not self.total_steps:
            raise UserError(
                f"task {task}: {len(examples)} rows x {epochs:g} epochs do not fill one global batch of "
                f"{global_batch_size}; lower train.global_batch_size or raise the epochs"
            )
        if self.total_steps > MOST_STEPS:
            raise UserError(
                f"task {task}: {len(examples)} rows x {epochs:g} epochs are {self.total_steps:.3g} optimizer steps; "
                f"lower the epochs (at most {MOST_STEPS} steps)"
            )
        self._pass = functools.lru_cache(maxsize=2)(self._shuffled)  # a step reaches into the next one at most

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of optimizer step `step`, longest first unless the packing is none."""
        first = step * self.global_batch_size
        places = (divmod(at, len(self.examples)) for at in range(first, first + self.global_batch_size))
        rows = [self._pass(epoch)[place] for epoch, place in places]
        if self.packing == "none":
            return rows
        return sorted(rows, key=lambda row: (-len(self.examples[row]), row))

    def answer_tokens(self, step: int) -> int:
        """Answer tokens of a step over all ranks: what its loss is divided by."""
        return sum(self.examples[row].learned for row in self.rows_of(step))

    def tokens(self, step: int) -> int:
        """Tokens of a step over all ranks, padding left out."""
        return sum(len(self.examples[row]) for row in self.rows_of(step))

    def micro_batches(self, step: int, rank: int = 0) -> Iterator[MicroBatch]:
        """The forward passes of one rank in a step, as many on every rank: under ZeRO-3 all take part in each."""
        rows = self.rows_of(step)
        for number in range(self.accumulation):
            first = (number * self.world_size + rank) * self.micro_batch_size
            numbers = tuple(rows[first : first + self.micro_batch_size])
            if not numbers:
                yield MicroBatch(torch.full((1, 2), self.pad_token_id), torch.full((1, 2), IGNORED))
                continue
            examples = [self.examples[row] for row in numbers]
            batch = pack(examples) if self.packing == "pack" else collate(examples, self.pad_token_id)
            yield dataclasses.replace(batch, numbers=numbers)

    def draw_seed(self, step: int, rank: int = 0) -> int:
        """Seed of what a model draws at random in a step."""
        return random.Random(f"{self.seed}/{self.task}/{step}/{rank}").getrandbits(63)

    def _shuffled(self, epoch: int) -> list[int]:
        """The rows in the order of a pass."""
        order = list(range(len(self.examples)))
        random.Random(f"{self.seed}/{self.task}/{epoch}").shuffle(order)
        return order


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Examples as one right-padded batch. A causal model never looks at what stands right, so no mask is needed."""
    length = max(len(example) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id)
    labels = torch.full((len(examples), length), IGNORED)
    for i, example in enumerate(examples):
        input_ids[i, : len(example)] = torch.tensor(example.prompt + example.answer)
        labels[i, len(example.prompt) : len(example)] = torch.tensor(example.answer)
        for begin, end in example.unlearned:
            labels[i, len(example.prompt) + begin : len(example.prompt) + end] = IGNORED
    return MicroBatch(input_ids, labels)


def pack(examples: Sequence[Example]) -> MicroBatch:
    """Examples end to end in one row; positions that start again keep attention within each of them."""
    parts = [collate([example], pad_token_id=0) for example in examples]
    for part in parts:
        part.labels[0, 0] = IGNORED  # which the example before would have to predict
    return MicroBatch(
        torch.cat([part.input_ids for part in parts], dim=1),
        torch.cat([part.labels for part in parts], dim=1),
        torch.cat([torch.arange(len(example)) for example in examples])[None],
    )


def divide_batch(global_batch_size: int, most: int, world_size: int) -> tuple[int, int]:
    """(rows of a forward pass, forward passes of each rank): the fewest passes of at most `most` rows, evenly filled.

    Where a step's rows do not fill all passes of all ranks, the last passes have fewer rows, or none.
    """
    accumulation = -(-global_batch_size // (most * world_size))
    return -(-global_batch_size // (accumulation * world_size)), accumulation


def rows_and_places(global_batch_size: int, places: int) -> str:
    """The rows of a step for its user, with the places of the ranks' forward passes that they leave empty."""
    empty = places - global_batch_size
    return f"{global_batch_size} rows" + (f" and {empty} empty place{'s' * (empty > 1)}" if empty else "")
