"""Batches of a fixed global size: the rows of an optimizer step never depend on the number of devices."""

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
    """The input of one forward pass of one rank. Tensors are [rows, tokens], except `known`.

    Attributes:
        input_ids: the token ids.
        labels: the token ids at answer tokens, IGNORED elsewhere.
        position_ids: given if examples are packed into one row; positions start again with each example.
        numbers: indices of the examples in the task's rows, in order; empty in a pass that reads only padding.
        kinds: the kind of each position at which retention measures the divergence (engine/retention.py).
        known: `top_tokens` of the model before the task, where they were measured.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None
    numbers: tuple[int, ...] = ()
    kinds: torch.Tensor | None = None
    known: torch.Tensor | None = None


class GlobalBatches:
    """The optimizer steps of one task as a pure function of (seed, task, step).

    The rows are read in shuffled passes that follow each other without a gap, so every row is seen equally often (up to
    one) and every step has exactly `global_batch_size` rows. The packing decides how they are divided into micro
    batches; the loss of a step is a sum over its answer tokens, so the packing changes nothing but the padding:

    - none: in the order of the pass; shorter rows are padded.
    - bucket: sorted by length, so that a micro batch has rows of similar length; shorter rows are padded.
    - pack: sorted by length, and concatenated in one row without padding.

    If the rows of a step do not fill the passes of all ranks, the last passes have fewer rows, or none.

    Args:
        examples: the task's rows.
        global_batch_size: rows of a step over all ranks.
        micro_batch_size: the most rows of one forward pass.
        epochs: passes over the rows; the number of steps is rounded down.
        seed: the order of rows depends on it.
        task: name of the task; the order of rows depends on it.
        world_size: number of ranks.
        pad_token_id: the padding token.
        packing: none, bucket or pack.
        replayed: rows of earlier tasks, which are shuffled together with the task's own.
        lengthened: True if replayed rows add steps; False if they replace some of the task's own rows.
        steps: number of optimizer steps, instead of `epochs`.

    Raises:
        UserError: the rows do not fill one step, or there are more than `MOST_STEPS` steps.
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
        self._pass = functools.lru_cache(maxsize=2)(self._shuffled)  # a step spans two passes at most

    def rows_of(self, step: int) -> list[int]:
        """Returns the indices of the rows of optimizer step `step`, longest first unless the packing is none."""
        first = step * self.global_batch_size
        places = (divmod(at, len(self.examples)) for at in range(first, first + self.global_batch_size))
        rows = [self._pass(epoch)[place] for epoch, place in places]
        if self.packing == "none":
            return rows
        return sorted(rows, key=lambda row: (-len(self.examples[row]), row))

    def answer_tokens(self, step: int) -> int:
        """Returns the number of answer tokens of a step over all ranks, by which its loss is divided."""
        return sum(self.examples[row].learned for row in self.rows_of(step))

    def tokens(self, step: int) -> int:
        """Returns the number of tokens of a step over all ranks, without padding."""
        return sum(len(self.examples[row]) for row in self.rows_of(step))

    def micro_batches(self, step: int, rank: int = 0) -> Iterator[MicroBatch]:
        """Yields one rank's forward passes in a step, equally many per rank: under ZeRO-3 all take part in each."""
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
        """Returns the seed of a model's random draws in a step."""
        return random.Random(f"{self.seed}/{self.task}/{step}/{rank}").getrandbits(63)

    def _shuffled(self, epoch: int) -> list[int]:
        """Returns the indices of the rows in the order of a pass."""
        order = list(range(len(self.examples)))
        random.Random(f"{self.seed}/{self.task}/{epoch}").shuffle(order)
        return order


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Returns examples as one right-padded batch. In a causal model no token sees the padding, so no mask is needed."""
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
    """Returns examples concatenated in one row; positions that start again restrict attention to each example."""
    parts = [collate([example], pad_token_id=0) for example in examples]
    for part in parts:
        part.labels[0, 0] = IGNORED  # the example before would have to predict it
    return MicroBatch(
        torch.cat([part.input_ids for part in parts], dim=1),
        torch.cat([part.labels for part in parts], dim=1),
        torch.cat([torch.arange(len(example)) for example in examples])[None],
    )


def divide_batch(global_batch_size: int, most: int, world_size: int) -> tuple[int, int]:
    """Returns (rows of a forward pass, forward passes of each rank): the fewest passes of at most `most` rows.

    The passes have about the same number of rows. If a step's rows do not fill all passes of all ranks, the last passes
    have fewer rows, or none.
    """
    accumulation = -(-global_batch_size // (most * world_size))
    return -(-global_batch_size // (accumulation * world_size)), accumulation


def rows_and_places(global_batch_size: int, places: int) -> str:
    """Describes the rows of a step, and how many places in the ranks' forward passes they leave empty."""
    empty = places - global_batch_size
    return f"{global_batch_size} rows" + (f" and {empty} empty place{'s' * (empty > 1)}" if empty else "")
