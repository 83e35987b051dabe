"""The plan compared with published parameter counts, and with allocations of real passes and DeepSpeed engines."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PretrainedConfig, PreTrainedModel

from codyra_llm.adapter import CoDyRAConfig, inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import load_config
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.train import StepReport, train_task
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.models.architectures import find_source, known_models
from codyra_llm.models.load import load_model, meta_model
from codyra_llm.planning.activations import activation_bytes
from codyra_llm.planning.footprint import parse_size, plan_footprint
from codyra_llm.planning.memory import ModelSizes, rank_memory, step_traffic
from codyra_llm.planning.quantized import stand_in
from tests.models import CONFIGS, WIDE, tiny_model

# from the models' cards and files
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b-it": 8_537_680_896,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
}
BUCKET = 20_000  # values; all adapters' gradients fit in, as they do in DeepSpeed's default


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_known_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count(meta_model(find_source(name).config)) == parameters


def test_gemma_3_4b_is_the_text_part_of_the_published_model() -> None:
    vision = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16}
    vision |= {"num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False}
    text = find_source("google/gemma-3-4b-it").config.to_dict()
    with torch.device("meta"):
        whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    assert count(whole) == 4_300_079_472
    assert count(whole.model.language_model) == count(meta_model(find_source("google/gemma-3-4b-it").config))


def test_every_known_model_has_a_base_and_a_tuned_id() -> None:
    by_config: dict[str, list[str]] = {}
    for name, config in known_models().items():
        by_config.setdefault(json.dumps(config), []).append(name)
    assert len(by_config) == 15
    for names in by_config.values():
        assert any(name.endswith(("-it", "-chat-hf", "-Instruct")) for name in names)
        assert any(not name.endswith(("-it", "-chat-hf", "-Instruct")) for name in names)


def on_meta(config: PretrainedConfig, dtype: torch.dtype = torch.float32, rank: int = 4) -> PreTrainedModel:
    config.dtype = dtype
    model = meta_model(config)
    inject(model, CoDyRAConfig(rank=rank))
    return model


def allocated(action: Callable[[], Any]) -> int:
    """Returns the peak bytes that torch's CPU allocator hands out while `action` runs, from its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    return peak_of(profiled)


def peak_of(profiled: profile) -> int:
    events = profiled.profiler.kineto_results.events()
    live = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma", "gemma2", "gemma3"])
def test_activations_on_meta_are_those_of_a_real_pass(architecture: str, checkpointing: bool) -> None:
    rows, length, answer = 2, 256, 24
    planned = activation_bytes(on_meta(CONFIGS[architecture]()), rows, length, rows * answer, checkpointing)
    model = tiny_model(architecture)
    inject(model, CoDyRAConfig(rank=4))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(10, 10 + length).repeat(rows, 1)
    labels = torch.where(torch.arange(length) >= length - answer, ids, -100)
    loss = AnswerLoss(model)
    loss(ids, labels).backward()  # so that gradients already exist in the measured pass
    real = allocated(lambda: loss(ids, labels).backward())
    assert planned == pytest.approx(real, rel=0.05)


def test_checkpointing_and_a_narrow_base_save_and_zero_3_costs() -> None:
    model = on_meta(CONFIGS["llama"](), torch.bfloat16)
    plain = activation_bytes(model, 2, 256, 48, checkpointing=False)
    assert activation_bytes(model, 2, 256, 48, checkpointing=True) < plain
    assert activation_bytes(model, 2, 256, 48, checkpointing=False, partitioned=True) > plain
    assert activation_bytes(model, 4, 256, 96, checkpointing=False) == pytest.approx(2 * plain, rel=0.05)


@pytest.mark.parametrize("length", [32, 256], ids=["step-phase", "backward-phase"])
@pytest.mark.parametrize("way", ["0", "1", "2", "3", "2-offload", "3-offload"])
def test_memory_is_what_a_real_engine_allocates(way: str, length: int) -> None:
    zero: dict[str, Any] = {"stage": int(way[0])}
    if way != "0":
        zero["reduce_bucket_size"] = BUCKET
    if way.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu"}
    overrides = {"adapter.rank": 16, "train.global_batch_size": 4, "train.per_device_train_batch_size": 2}
    config = load_config(None, overrides)
    sizes, held, peak = real_engine_bytes(config, {"zero_optimization": zero}, length)
    model = on_meta(CONFIGS["llama"](), rank=16)
    activations = activation_bytes(model, 2, length, 2 * 8, False, zero["stage"] == 3)
    planned = rank_memory(sizes, DeepSpeedZeroConfig(**zero), 1, 2, activations)
    assert sizes == ModelSizes.of(model)
    assert planned.shared_peak == pytest.approx(held + peak, rel=0.1)
    between = planned.held + planned.host
    if zero["stage"] == 3:
        between += BUCKET * 4 + (0 if way.endswith("offload") else planned.gradients)
    largest = 4 * 64 * 16 * (way == "2-offload")  # the device's copy of the largest weight
    assert held == pytest.approx(between + largest, rel=0.02)


def real_engine_bytes(config: Any, deepspeed_json: dict[str, Any], length: int) -> tuple[ModelSizes, int, int]:
    """Returns (sizes, bytes of all tensors between the second and third step, peak of the third step on top)."""
    world = start()
    gc.collect()
    before = {pointer for pointer, _ in storages()}
    model = tiny_model("llama")
    prepared = METHODS["codyra"](config).prepare(model, "task", 3)
    sizes = ModelSizes.of(model)
    examples = [Example([1] * (length - 8), [2] * 8)] * 12
    batches = GlobalBatches(examples, 4, 2, 1, 0, "task")
    seen: dict[str, Any] = {}

    def on_step(report: StepReport, read: object) -> None:
        if report.step == 1:
            gc.collect()
            seen["held"] = sum(size for pointer, size in set(storages()) if pointer not in before)
            seen["profile"] = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            seen["profile"].start()
        elif report.step == 2:
            seen["profile"].stop()

    train_task(model, prepared.optimizer, prepared.schedule, batches, config.train, deepspeed_json, world, on_step)
    return sizes, seen["held"], peak_of(seen["profile"])


def storages() -> list[tuple[int, int]]:
    """Returns (address, bytes) of the storage of every CPU tensor of this process."""
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.device.type == "cpu"]
    # fake tensors left by a compiler have a size but no memory
    tensors = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor | FunctionalTensor)]
    return [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_take_what_is_planned(quantization: str, tmp_path: Path) -> None:
    tiny_model("llama", **WIDE).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), quantization=quantization)
    real = 0
    for name, tensor in loaded.state_dict().items():
        if not name.endswith(("quant_map", "bitsandbytes__nf4", "weight_format")):  # tables shared by all layers
            real += tensor.nbytes
    planned = meta_model(tiny_model("llama", **WIDE).config, dtype=torch.float32)
    stand_in(planned, quantization)
    planned.requires_grad_(False)
    assert ModelSizes.of(planned).bytes_of(trains=False) == real
    assert ModelSizes.of(planned).total == count(tiny_model("llama", **WIDE))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_activations_over_quantized_weights_are_those_of_a_real_pass(quantization: str, tmp_path: Path) -> None:
    tiny_model("llama", **WIDE).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), quantization=quantization)
    inject(model, CoDyRAConfig(rank=4))
    model.train()
    ids = torch.arange(10, 266).repeat(2, 1)
    labels = torch.where(torch.arange(256) >= 256 - 24, ids, -100)
    loss = AnswerLoss(model)
    loss(ids, labels).backward()
    real = allocated(lambda: loss(ids, labels).backward())
    planned = meta_model(tiny_model("llama", **WIDE).config, dtype=torch.float32)
    stand_in(planned, quantization)
    inject(planned, CoDyRAConfig(rank=4))
    assert activation_bytes(planned, 2, 256, 48, checkpointing=False) == pytest.approx(real, rel=0.1)


def test_8_bit_moments_take_a_quarter() -> None:
    model = on_meta(CONFIGS["llama"](), rank=16)
    wide, narrow = (rank_memory(ModelSizes.of(model, bits), DeepSpeedZeroConfig(stage=2), 1, 2, 0) for bits in (32, 8))
    moments = 2 * 4 * ModelSizes.of(model).trainable
    assert wide.optimizer - narrow.optimizer == pytest.approx(0.75 * moments, rel=0.05)


def test_more_ranks_hold_less_and_move_more() -> None:
    sizes = ModelSizes.of(on_meta(CONFIGS["llama"]()))
    for stage in (1, 2, 3):
        zero = DeepSpeedZeroConfig(stage=stage, reduce_bucket_size=BUCKET, stage3_param_persistence_threshold=0)
        two, eight = (rank_memory(sizes, zero, ranks, 2, 0) for ranks in (2, 8))
        assert eight.optimizer == pytest.approx(two.optimizer / 4, abs=8)
        assert (eight.weights < two.weights) == (stage == 3)
        assert step_traffic(sizes, zero, 8, 2, False).network > step_traffic(sizes, zero, 2, 2, False).network
    assert step_traffic(sizes, DeepSpeedZeroConfig(stage=2), 1, 2, False).network == 0


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5tb", 15 * 10**11)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["80XB", "80", "GB", "-1GB", "0GB", "1e3GB", ""])
def test_other_sizes_are_named(text: str) -> None:
    with pytest.raises(UserError, match="is not a size of memory; give one like 80GB"):
        parse_size(text)


class Inputs:
    """Stand-in passes that only have the second moments of every projection's inputs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.moments = {
            name: torch.diag(torch.arange(1.0, 1 + module.in_features))
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def input_moments(self, rows: object) -> dict[str, torch.Tensor]:
        return self.moments

    def own_texts(self, count: int, length: int) -> list[Example]:
        return [Example([1], [2])] * count

    def embedding_means(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.ones(len(rows), 32)

    def __getattr__(self, name: str) -> Any:
        return lambda *given: {}


@pytest.mark.parametrize("settings", [
    *({"method": name} for name in sorted(METHODS)),
    {"method": "lora_null", "lora_null.freeze_inputs": True},
    {"method": "pruned", "pruned.by": "start", "pruned.keep": 0.25},
    {"method": "osft", "osft.train": 0.3},
], ids=lambda settings: "-".join(map(str, settings.values())))  # fmt: skip
def test_what_a_method_trains_is_planned(settings: dict[str, Any]) -> None:
    """The plan has as many trainable values and tensors as the method makes of a real model."""
    config = load_config(None, {"adapter.rank": 4, **settings})
    method, real = METHODS[config.method](config), tiny_model()
    if config.method != "routed":
        method.before_training([Example([1], [2])], Inputs(real))
    method.prepare(real, "first", 10)
    planned = meta_model(real.config)
    method.wrap(planned)
    for _, layer in gated_layers(planned):
        method.size_branch(layer)
    shapes = [[(name, p.shape) for name, p in model.named_parameters() if p.requires_grad] for model in (real, planned)]
    assert shapes[0] == shapes[1]


def test_a_plan_knows_what_a_method_costs_and_where_it_runs() -> None:
    base = {"model.name_or_path": "meta-llama/Llama-3.2-1B", "data_dir": "nowhere"}
    of_runs: dict[str, dict[str, Any]] = {name: {"method": name} for name in ("lora", "osft", "lwf")}
    of_runs["prompts"] = {"method": "lora", "retention.prompts": 1, "retention.every": 2}
    plans = {
        name: plan_footprint(load_config(None, {**base, **settings}), 2, 80 * 10**9)
        for name, settings in of_runs.items()
    }
    assert {name: plan.relative_cost for name, plan in plans.items()} == {
        "lora": 1, "osft": 3.5, "lwf": 1.5, "prompts": 1.25,
    }  # fmt: skip
    assert plans["osft"].trainable > 10 * plans["lora"].trainable
    assert plans["osft"].parameters == plans["lora"].parameters == 1_235_814_400
    assert any(way.name.startswith("zero3") for way in plans["lora"].ways)
    assert not any(way.name.startswith("zero3") for way in plans["osft"].ways), "it needs whole weights"


def test_steps_that_are_set_are_those_of_every_task() -> None:
    settings = {"model.name_or_path": "meta-llama/Llama-3.2-1B", "data_dir": "nowhere", "train.steps": 7}
    planned = plan_footprint(load_config(None, settings), 1, 80 * 10**9, rows=64)
    assert set(planned.workload.steps.values()) == {7}
