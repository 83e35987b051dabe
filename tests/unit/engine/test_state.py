"""Reading and restoring the whole trainable state by name, on an engine of one rank at every ZeRO stage."""

import copy
from collections.abc import Iterator
from typing import Any

import deepspeed
import pytest
import torch

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.optimizer import Proximal
from codyra_llm.config import TrainConfig
from codyra_llm.distributed.ranks import Ranks, local_rank_in_environment, start
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.state import TaskState, own_piece, read_state, trainable, write_branches, write_moments
from tests.models import tiny_model

CONFIG = CoDyRAConfig(rank=3, target_modules=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = start()
    with local_rank_in_environment():
        yield ranks


def engine_of(stage: int, state: TaskState | None = None) -> tuple[Any, Any, Proximal]:
    model = tiny_model()
    inject(model, CONFIG, seed=7)
    if state:
        write_branches(model, state)
    optimizer = ProximalAdamW.for_model(model, CONFIG, lr=0.01)
    train = TrainConfig(global_batch_size=1, per_device_train_batch_size=1)
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=[p for group in optimizer.param_groups for p in group["params"]],
        config=complete({"zero_optimization": zero}, train, 1),
        dist_init_required=False,
    )
    if state:
        write_moments(model, engine, optimizer, state)
    return model, engine, optimizer


def step(engine: Any, number: int) -> None:
    torch.manual_seed(number)
    ids = torch.randint(3, 500, (1, 12))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_read_and_written_goes_on_to_the_same_bits(stage: int, ranks: Ranks) -> None:
    model, engine, optimizer = engine_of(stage)
    for number in range(3):
        step(engine, number)
    middle = read_state(model, engine, optimizer, ranks)
    for number in range(3, 5):
        step(engine, number)
    end = read_state(model, engine, optimizer, ranks)
    engine.destroy()

    for other in (stage, (stage + 2) % 4):  # the same stage, and another one
        model, engine, optimizer = engine_of(other, TaskState(3, copy.deepcopy(middle)))
        assert same(read_state(model, engine, optimizer, ranks), middle)
        for number in range(3, 5):
            step(engine, number)
        found = read_state(model, engine, optimizer, ranks)
        engine.destroy()
        assert found.keys() == end.keys()
        if other == stage:
            assert same(found, end)
        else:
            torch.testing.assert_close(found, end, atol=1e-6, rtol=1e-5)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_frozen_is_no_part_of_it(ranks: Ranks) -> None:
    model = tiny_model()
    inject(model, CONFIG)
    _, layer = next(iter(gated_layers(model)))
    layer.A.requires_grad_(False)
    names = [name for name, _, _ in trainable(model)]
    assert len(names) == 2 * 2 * 3 - 1 and "model.layers.0.self_attn.q_proj.A" not in names
    optimizer = ProximalAdamW.for_model(model, CONFIG)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_pieces_of_one_rank_are_whole(stage: int, ranks: Ranks) -> None:
    model, engine, _ = engine_of(stage)
    for name, parameter, _ in trainable(model):
        piece = own_piece(engine, parameter)
        assert piece and (piece.offset, piece.length) == (0, getattr(parameter, "ds_numel", parameter.numel())), name
    engine.destroy()
