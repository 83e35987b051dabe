"""Global batches: a pure function of (seed, task, step), whatever the number of devices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codyra_llm.data.batches import IGNORED, GlobalBatches
from codyra_llm.errors import UserError
from codyra_llm.example import Example


def examples(n: int) -> list[Example]:
    """Returns rows of many lengths, each with its own prompt token."""
    return [Example([1000 + i] * (1 + i % 7), [5] * (1 + i % 3)) for i in range(n)]


def rows_seen(batches: GlobalBatches, step: int, rank: int) -> list[int]:
    return [int(row[0]) - 1000 for batch in batches.micro_batches(step, rank) for row in batch.input_ids]


@given(
    n=st.integers(1, 40),
    epochs=st.sampled_from([0.5, 1, 2, 3.5]),
    micro=st.integers(1, 3),
    per_rank=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_rows_of_a_step_do_not_depend_on_world_size(n: int, epochs: float, micro: int, per_rank: int) -> None:
    global_batch = micro * per_rank * 4
    if int(n * epochs) < global_batch:
        with pytest.raises(UserError, match="do not fill one global batch"):
            GlobalBatches(examples(n), global_batch, micro, epochs, 0, "task")
        return
    by_world = {world: GlobalBatches(examples(n), global_batch, micro, epochs, 0, "task", world) for world in (1, 2, 4)}
    counts = torch.zeros(n)
    for step in range(by_world[1].total_steps):
        expected = sorted(rows_seen(by_world[1], step, 0))
        for world, batches in by_world.items():
            shares = [rows_seen(batches, step, rank) for rank in range(world)]
            assert sorted(row for share in shares for row in share) == expected
            assert {len(share) for share in shares} == {global_batch // world}
        for row in expected:
            counts[row] += 1
        tokens = sum(int((b.labels != IGNORED).sum()) for b in by_world[1].micro_batches(step))
        assert tokens == by_world[1].answer_tokens(step)
    assert counts.max() - counts.min() <= 1, "every row is seen equally often"


def test_passes_differ_and_seeds_differ() -> None:
    def orders(seed: int) -> list[list[int]]:
        batches = GlobalBatches(examples(24), 4, 1, 2, seed, "task")
        return [sorted(batches.rows_of(step)) for step in range(batches.total_steps)]

    assert orders(0) == orders(0)
    assert orders(0)[:6] != orders(0)[6:]
    assert orders(0) != orders(1)


def test_published_step_counts() -> None:
    counts = [GlobalBatches(examples(500), 32, 1, epochs, 0, "t").total_steps for epochs in (1, 2, 3, 5, 7)]
    assert counts == [15, 31, 46, 78, 109]


@pytest.mark.parametrize(
    ("most", "ranks", "rows", "passes"),
    [(4, 2, 2, 1), (3, 1, 2, 2), (4, 4, 1, 1), (9, 1, 4, 1), (2, 1, 2, 2), (4, 3, 2, 1), (1, 3, 1, 2), (1, 8, 1, 1)],
)
def test_any_number_of_ranks_shares_a_global_batch(most: int, ranks: int, rows: int, passes: int) -> None:
    batches = GlobalBatches(examples(8), 4, most, 1, 1, "task", ranks)
    assert batches.micro_batch_size == rows
    of_ranks = [list(batches.micro_batches(0, rank)) for rank in range(ranks)]
    assert {len(of_rank) for of_rank in of_ranks} == {passes}, "at ZeRO-3 every rank takes part in every pass"
    every = [batch for of_rank in of_ranks for batch in of_rank]
    assert sorted(number for batch in every for number in batch.numbers) == sorted(batches.rows_of(0))
    assert sum(int((batch.labels != IGNORED).sum()) for batch in every) == batches.answer_tokens(0)


@pytest.mark.parametrize("packing", ["none", "bucket", "pack"])
def test_packing_changes_only_how_rows_share_passes(packing: str) -> None:
    by_packing = GlobalBatches(examples(24), 8, 4, 1, 0, "task", packing=packing)
    bucket = GlobalBatches(examples(24), 8, 4, 1, 0, "task")
    for step in range(bucket.total_steps):
        assert sorted(by_packing.rows_of(step)) == sorted(bucket.rows_of(step))
        passes = list(by_packing.micro_batches(step))
        assert len(passes) == 2
        assert sum(int((batch.labels != IGNORED).sum()) for batch in passes) == bucket.answer_tokens(step)
        cells = sum(batch.input_ids.numel() for batch in passes)
        if packing == "pack":
            assert cells == bucket.tokens(step)
            starts = int(torch.stack([(batch.position_ids == 0).sum() for batch in passes]).sum())
            assert starts == 8
        else:
            assert cells > bucket.tokens(step)
            assert all(batch.position_ids is None for batch in passes)
