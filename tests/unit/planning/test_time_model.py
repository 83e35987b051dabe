"""Times of the plan, compared with sums made by hand and with counted operations."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch.utils.flop_counter import FlopCounterMode

from codyra_llm.adapter import CoDyRAConfig, inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.prompts import add_prompts
from codyra_llm.config import EvaluateConfig, load_config
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.errors import UserError
from codyra_llm.planning import time_model
from codyra_llm.planning.ceilings import SHEETS, Ceilings, Protocol, find_ceilings, known
from codyra_llm.planning.footprint import plan_footprint
from codyra_llm.planning.memory import ModelSizes, Traffic
from codyra_llm.planning.report import seconds
from codyra_llm.planning.run_time import Files, StepModel, asked_after, holds_whole, run_time
from codyra_llm.planning.time_model import Questions, Shape, StepTime
from tests.models import tiny_model

# two layers of 1000 values in projections and 100 in branches; a head of 500; 8 values of queries a token in each layer
SHAPE = Shape(
    layers=2, projections=2000, branches=200, head=500, attention=16, cached=64, weights=5000, width=2
)  # fmt: skip
SLOW = Ceilings(
    "slow", flops=1e6, memory=1e5, link=1e4, network=5e3, host=1e4, devices=4, call=0.01, layer=0.0, disk=1e3,
    hashing=2e3, protocols=(Protocol(0.001, 0.1),),
)  # fmt: skip


def test_operations_of_a_pass() -> None:
    # 10 tokens in rows of 5, the head at 4 of them: 2 (2000 + 200) 10 + 2 x 16 x 5 x 10 + 2 x 500 x 4
    assert time_model.forward_flops(SHAPE, 10, 5, 4) == 44_000 + 1_600 + 4_000
    # 4 x 2000 x 10 + 6 x 200 x 10 + 7 x 16 x 5 x 10 + 4 x 500 x 4
    assert time_model.training_flops(SHAPE, 10, 5, 4, recompute=False) == 80_000 + 12_000 + 5_600 + 8_000
    again = 44_000 + 1_600
    assert time_model.training_flops(SHAPE, 10, 5, 4, recompute=True) == 105_600 + again


def test_branches_span_their_inputs_and_outputs_and_prompts_the_states_of_a_token() -> None:
    branches, prompts = (tiny_model("llama", num_hidden_layers=2) for _ in range(2))
    inject(branches, CoDyRAConfig(rank=4))
    _, layer = add_prompts(prompts, 5, 3, lambda queries, keys: queries)
    found = [Shape.of(model, ModelSizes.of(model)).spanned for model in (branches, prompts)]
    spans = [each.in_features + each.out_features for _, each in gated_layers(branches)]
    assert found == [sum(spans), 2 * layer.out_features]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_operations_are_those_that_torch_counts(architecture: str, recompute: bool) -> None:
    """Compares all but attention, which torch's counter omits on a CPU, and gradients of the first layer's inputs."""
    model = tiny_model(architecture, num_hidden_layers=8, hidden_size=64, intermediate_size=128, head_dim=16)
    inject(model, CoDyRAConfig(rank=4, impl="reference"))
    shape = dataclasses.replace(Shape.of(model, ModelSizes.of(model)), attention=0)
    model.train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(10, 10 + 64).repeat(2, 1)
    labels = torch.where(torch.arange(64) >= 64 - 16, ids, -100)
    loss = AnswerLoss(model)
    with FlopCounterMode(display=False) as counter:
        loss(ids, labels).backward()
    expected = time_model.training_flops(shape, 2 * 64, 64, 2 * 16, recompute)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_micro_batch_computes_and_moves() -> None:
    # 93,600 operations of the base at 1e6 a second, 12,000 of branches, and 1000 bytes at 1e5
    light = dataclasses.replace(SHAPE, weights=1000)
    assert time_model.micro_batch_seconds(light, SLOW, 10, 5, 4, False, touched=1000) == pytest.approx(0.1056 + 0.01)
    # reading the base's 5000 bytes in both passes takes longer
    assert time_model.micro_batch_seconds(SHAPE, SLOW, 10, 5, 4, False) == pytest.approx(0.1 + 0.012)
    # what branches read and write for 10 tokens, 200 values of 2 bytes, once forward and twice backward, does too
    wide = dataclasses.replace(light, spanned=200)
    assert time_model.micro_batch_seconds(wide, SLOW, 10, 5, 4, False) == pytest.approx(0.0936 + 0.12)
    starting = dataclasses.replace(SLOW, layer=0.1)
    assert time_model.micro_batch_seconds(SHAPE, starting, 10, 5, 4, True) == pytest.approx(3 * 2 * 0.1)


def test_a_ring() -> None:
    # within a node of four: 3 steps of 1 ms, 750 bytes at 1e4 a second; twice the steps where all is reduced
    assert time_model.collective_seconds(750, 1, 4, SLOW) == pytest.approx(0.01 + 0.003 + 0.075)
    assert time_model.collective_seconds(1500, 1, 4, SLOW, rounds=2) == pytest.approx(0.01 + 0.006 + 0.15)
    # eight ranks on two nodes: 6 steps within them, 1 between, and the network's bandwidth; three calls
    assert time_model.collective_seconds(700, 3, 8, SLOW) == pytest.approx(3 * (0.01 + 0.006 + 0.1) + 0.14)
    assert time_model.collective_seconds(700, 1, 1, SLOW) == 0


def test_the_protocol_that_takes_least_is_taken() -> None:
    two = dataclasses.replace(SLOW, protocols=(Protocol(0.001, 0.1, 0.5), Protocol(0.01, 0.1, 1.0)))
    assert time_model.collective_seconds(10, 1, 4, two) == pytest.approx(0.01 + 0.003 + 0.002)
    assert time_model.collective_seconds(1000, 1, 4, two) == pytest.approx(0.01 + 0.03 + 0.1)


def test_agreeing_on_a_few_numbers() -> None:
    assert time_model.agreement_seconds(1, SLOW) == 0
    assert time_model.agreement_seconds(4, SLOW) == pytest.approx(0.01 + 2 * 3 * 0.001)
    assert time_model.agreement_seconds(16, SLOW) == pytest.approx(0.01 + 2 * (3 * 0.001 + 2 * 0.1))


def test_a_step_hides_what_it_moves_where_that_overlaps() -> None:
    beside = StepTime(1.0, 2.0, 0.5, 0.1, 0.01, 0.0, overlaps=True)
    assert beside.total == pytest.approx(2.5 + 0.11)
    assert dataclasses.replace(beside, overlaps=False).total == pytest.approx(3.5 + 0.11)
    assert beside.network == pytest.approx(2.61)
    traffic = Traffic(1500, 0, 750, 0, 1, 0, 2, 3)
    step = time_model.step_time(1.0, traffic, 1, 4, SLOW, overlaps=True, trainable=100)
    assert step.compute == pytest.approx(1.0 + 28 * 25 / 1e5)
    assert (step.gradients, step.optimizer) == pytest.approx((0.01 + 0.006 + 0.15, 0.02 + 0.006 + 0.075))
    assert step.agreements == pytest.approx(4 * 0.016)
    assert not step.overlaps, "stage 1 reduces when the passes are done"


def test_stage_3_waits_for_the_host_that_fetches_its_weights() -> None:
    gathers = Traffic(0, 0, 0, 0, weight_calls=50)
    busy = dataclasses.replace(SLOW, fetch=0.1)
    assert time_model.step_time(1.0, gathers, 3, 4, busy, overlaps=True).compute == 5, "the device waits for its host"
    assert time_model.step_time(8.0, gathers, 3, 4, busy, overlaps=True).compute == 8, "the host is ahead"
    alone = dataclasses.replace(busy, ahead=False)
    assert time_model.step_time(8.0, gathers, 3, 4, alone, overlaps=True).compute == 13


def test_a_batch_of_answers() -> None:
    asked = Questions(rows=100, prompt=20, answer=5, new=10)
    # a batch of 4: prompts 80 tokens of 4400 and 2 x 16 x 20; true answers 20 tokens of 4400 and 2 x 16 x 5, the head;
    # then ten passes that read 5000 bytes of weights and 4 x 25 x 64 of keys and values
    prompts = (80 * 4400 + 80 * 640) / 1e6
    true = (20 * 4400 + 20 * 160 + 2 * 500 * 20) / 1e6
    own = 10 * max((5000 + 4 * 25 * 64) / 1e5, 4 * 2 * (2000 + 500 + 16 * 25) / 1e6)
    assert time_model.batch_seconds(SHAPE, SLOW, asked, 4) == pytest.approx(prompts + true + own)
    gathered = time_model.batch_seconds(SHAPE, SLOW, asked, 4, gather=1.0)
    assert gathered == pytest.approx(prompts + true + own + 12)


def test_answers_wait_for_what_is_no_product_and_for_a_host_that_computes() -> None:
    asked = Questions(rows=100, prompt=20, new=10)
    plain = time_model.batch_seconds(SHAPE, SLOW, asked, 4)
    touching = dataclasses.replace(SHAPE, touched=50)
    # 80 tokens of the prompts, and 4 in each of ten passes
    assert time_model.batch_seconds(touching, SLOW, asked, 4) == pytest.approx(plain + 120 * 50 / 1e5)
    busy = dataclasses.replace(SLOW, layer=0.01, ahead=False)
    assert time_model.batch_seconds(SHAPE, busy, asked, 4) == pytest.approx(plain + 11 * 2 * 0.01)


def test_one_reply_at_a_time_reads_the_weights_for_each() -> None:
    asked = [Questions(rows=64, prompt=1, new=100)]
    alone, together = (time_model.asking_seconds(SHAPE, known("h100"), asked, batch, 1) for batch in (1, 32))
    assert alone / together == pytest.approx(32, rel=0.01)


def test_ranks_take_batches_in_turn() -> None:
    # three of 5 s, then four of 1 s, on two ranks: (5, 5), (5, 1), (1, 1), (1)
    assert time_model.answering_seconds([(4, 1.0), (3, 5.0)], 2) == 5 + 5 + 1 + 1
    assert time_model.answering_seconds([(4, 1.0), (3, 5.0)], 1) == 19
    assert time_model.answering_seconds([(4, 1.0), (3, 5.0)], 100) == 5
    assert time_model.answering_seconds([], 4) == 0


def test_a_merge_reads_what_each_node_holds() -> None:
    # two entries of 1000 bytes are read and sent by 4 x 2 broadcasts; 4000 bytes of original weights, and the sums
    sending = 8 * (0.01 + 0.003) + 2000 / 1e4
    whole = time_model.merge_seconds(SHAPE, SLOW, 1000, 2, 2, 4, partitioned=False)
    assert whole == pytest.approx(2 + sending + 4 + 2000 * 16 / 1e5)
    parts = time_model.merge_seconds(SHAPE, SLOW, 1000, 2, 2, 8, partitioned=True)
    sending = 8 * (0.01 + 0.006 + 0.1) + 2000 / 5e3
    assert parts == pytest.approx(2 + sending + 2 + 250 * 16 / 1e5)
    assert time_model.writing_seconds(1000, SLOW) == 1.5


def test_the_phases_of_a_run() -> None:
    config = load_config(None, {"train.checkpoint_every": 2, "evaluate.tasks": "seen", "evaluate.batch_size": 4})
    step = StepTime(1.0, 0, 0, 0, 0, 0, overlaps=False)
    questions = {"a": Questions(4, 20, 5, 10), "b": None}
    steps, files = {"a": 5, "b": None}, Files(checkpoint=1000, entry=100, projections=2)
    time = run_time(config, StepModel(SHAPE, SLOW), step, steps, questions, files, 1, 0, whole=True)
    base, a, b = time.tasks
    assert (base.task, base.evaluation, base.general) == ("", 0, 0)
    assert (a.training, a.checkpoints) == (5, 2 * 1.5)
    assert a.evaluation == pytest.approx(time_model.batch_seconds(SHAPE, SLOW, Questions(4, 20, 5, 10), 4))
    assert (b.training, b.checkpoints, b.evaluation) == (None, None, None)
    assert b.merge - a.merge == pytest.approx(0.1), "the second merge reads both entries"
    assert time.total == pytest.approx(time.start + time.save + a.total + b.total)


def test_what_is_scored_after_each_task() -> None:
    names = ["a", "b"]
    found = {
        tasks: [asked_after(EvaluateConfig(tasks=tasks), names, number) for number in (0, 1, 2)]
        for tasks in ("all", "seen", "last")
    }
    assert found == {"all": [names] * 3, "seen": [[], ["a"], names], "last": [[], [], names]}


def test_when_an_evaluation_holds_all_weights() -> None:
    assert holds_whole("always", 100, 0)
    assert holds_whole("auto", 100, 125)
    assert not holds_whole("auto", 100, 124)
    assert not holds_whole("never", 100, 1000)


def test_stated_ceilings() -> None:
    found = known("h100")
    assert found.flops == pytest.approx(0.65 * 989e12)
    assert found.network == pytest.approx(0.9 * 8 * 50e9)
    assert all("data sheet" in known(name).source for name in SHEETS)


def test_ceilings_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"like": "a100", "disk": 5e9}))
    assert find_ceilings(str(file)).disk == 5e9
    assert find_ceilings(str(file)).flops == known("a100").flops
    parts = [
        {"part": "machine", "rows": [{"what": "device", "found": "NVIDIA H200"}]},
        {"part": "ceilings", "rows": [{"what": "flops", "found": 7e14}, {"what": "layer", "found": 1e-4}]},
    ]
    file.write_text(json.dumps({"parts": parts}))
    found = find_ceilings(str(file))
    assert (found.flops, found.layer, found.link) == (7e14, 1e-4, known("h200").link)
    assert "flops, layer" in found.source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"like": "b200"}, "\"like\" is 'b200'; it must be one of a100, h100, h200"),
        ({"like": "h100", "speed": 1}, "speed is no ceiling; there are flops, memory"),
        (
            {"like": "h100", "disk": 0},
            "disk is 0; it must be a number from 1e+06 to 1e+20, in operations or bytes a second",
        ),
        ({"like": "h100", "disk": "fast"}, "disk is 'fast'; it must be a number from"),
        ({"like": "h100", "disk": True}, "disk is True; it must be a number from"),
        ({"like": "h100", "flops": float("nan")}, "flops is nan; it must be a number from"),
        ({"like": "h100", "flops": 989}, "flops is 989; it must be a number from"),  # teraflops
        ({"like": "h100", "flops": 10**400}, "flops is 1000000"),
        ({"like": "h100", "call": 20}, "call is 20; it must be a number from 1e-09 to 10, in seconds"),  # microseconds
        ({"like": "h100", "devices": 0.5}, "devices is 0.5; it must be a number from 1 to 10000, whole"),
        ({"like": "h100", "devices": 0}, "devices is 0; it must be a number from 1 to 10000, whole"),
        ({"like": ["h100"]}, "\"like\" is ['h100']; it must be one of"),
        ({"disk": 5e9}, '"like" is None; it must be one of'),
        ([1], "ceilings are a JSON object, found list"),
        ({"parts": [1]}, "is no selfcheck.json"),
        ({"parts": []}, "has no part on ceilings"),
        ({"parts": [{"part": "ceilings", "rows": [{"what": "flops", "found": 1}]}]}, "its device is not named"),
    ],
)
def test_other_ceilings_are_one_line(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        find_ceilings(str(file))
    assert message in str(error.value)


def test_an_unknown_name_of_ceilings() -> None:
    with pytest.raises(UserError, match="give one of a100, h100, h200"):
        find_ceilings("h1000")


def test_more_gpus_take_less_time_until_the_network_is_what_counts() -> None:
    settings = {"model.name_or_path": "meta-llama/Llama-3.2-1B", "model.dtype": "bfloat16", "data_dir": "nowhere"}
    config = load_config(None, {**settings, "train.global_batch_size": 64, "order": "FOMC"})
    plans = [plan_footprint(config, gpus, 80 * 10**9, 640, 100, known("h100")) for gpus in (1, 8, 64)]
    times = [{(way.name, way.checkpointing): way.time for way in plan.ways} for plan in plans]
    for key, alone in times[0].items():
        assert alone
        assert times[1][key].total < alone.total / 6, "eight of one node"
        assert alone.network == 0
    for key in (("zero0", False), ("zero1", False)):  # at other stages traffic depends on the number of micro batches
        assert times[2][key].network > times[1][key].network
    assert all(plan.time and plan.time.total > 0 for plan in plans)
    assert plans[0].as_dict()["ways"][0]["time"]["total"] == times[0]["zero0", False].total


@pytest.mark.parametrize(
    ("value", "text"), [(0, "-"), (0.0123, "0.012 s"), (42.1, "42 s"), (150, "2.5 min"), (9000, "2.5 h")]
)
def test_times_are_readable(value: float, text: str) -> None:
    assert seconds(value) == text


def test_every_way_has_its_overlap() -> None:
    step = StepModel(SHAPE, SLOW).step(
        (1, 10, 10.0, 4), 2, 0, Traffic(0, 0, 0, 0), DeepSpeedZeroConfig(stage=3), 1, False
    )
    assert step.overlaps, "DeepSpeed's default at stage 3"
