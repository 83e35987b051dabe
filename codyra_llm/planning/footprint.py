"""The plan of a run: each way of running it on a number of GPUs, with its needs, and the first way that fits."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.data.batches import GlobalBatches, divide_batch
from codyra_llm.data.stream import TaskSpec, TaskStream, read_task_file, resolve_order
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.find import find_domain
from codyra_llm.domains.text.domain import TEXT
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.retention import cost_of
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import new_tokens
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.models.architectures import find_source
from codyra_llm.models.load import meta_model
from codyra_llm.models.source import Source
from codyra_llm.planning.activations import pass_bytes
from codyra_llm.planning.ceilings import Ceilings
from codyra_llm.planning.memory import FP32, ModelSizes, RankMemory, Traffic, rank_memory, step_traffic
from codyra_llm.planning.quantized import stand_in
from codyra_llm.planning.run_plan import RunPlan, check_adapter, length_of, plan_run
from codyra_llm.planning.run_time import Files, RunTime, StepModel, holds_whole, run_time
from codyra_llm.planning.time_model import Questions, Shape, StepTime

# (way, recompute), those with the least traffic and recomputation first
ORDER = (
    *[(way, recompute) for recompute in (False, True) for way in ("zero0", "zero1", "zero2")],
    *[(way, recompute) for way in ("zero3", "zero2-offload", "zero3-offload") for recompute in (False, True)],
)
MARGIN = 1.1
RESERVED = 1.5e9  # CUDA's context and the workspaces of cuBLAS and NCCL: an assumption, not a measurement
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Workload:
    """The workload of a run.

    Attributes:
        length: tokens of the longest row.
        answer_length: answer tokens of the longest answer.
        steps: optimizer steps of each task; None if its rows are not known.
        source: description of where the numbers are from.
        mean: mean tokens of a row.
        questions: test rows of each task; None if they are not known.
    """

    length: int
    answer_length: int
    steps: dict[str, int | None]
    source: str
    mean: float
    questions: dict[str, Questions | None]


@dataclass(frozen=True)
class Way:
    """A way of running: a DeepSpeed JSON (None: stage 0), with or without gradient checkpointing.

    `touched` is as in `Shape`.
    """

    name: str
    deepspeed: str | None
    checkpointing: bool
    memory: RankMemory
    traffic: Traffic
    fits: bool
    time: StepTime | None = None
    touched: float = 0


@dataclass(frozen=True)
class Footprint:
    """The complete plan.

    `checkpoint` and `ledger` are bytes, the ledger's for one task at full rank. `relative_cost` is the FLOPs of an
    optimizer step, including what method and retention add, relative to fixed-rank LoRA. `time` is that of the first
    way that fits, if ceilings are given.
    """

    model: str
    architecture: str
    attention: str
    dtype: str
    parameters: int
    trainable: int
    projections: list[str]
    gpus: int
    gpu_memory: int
    global_batch: int
    micro_batch: int
    accumulation: int
    workload: Workload
    checkpoint: int
    ledger: int
    relative_cost: float
    ways: list[Way]
    time: RunTime | None = None

    @property
    def recommended(self) -> Way | None:
        """The first way that fits; None if none does."""
        return next((way for way in self.ways if way.fits), None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as a dictionary for JSON, including sums."""
        result = dataclasses.asdict(self)
        for way, entry in zip(self.ways, result["ways"], strict=True):
            entry["memory"] |= {"peak": way.memory.peak, "host_peak": way.memory.host_peak, "needs": needed(way.memory)}
            entry["traffic"]["network"] = way.traffic.network
            if way.time:
                entry["time"] |= {"network": way.time.network, "total": way.time.total}
        best = self.recommended
        result["recommended"] = best and {"deepspeed": best.deepspeed, "checkpointing": best.checkpointing}
        return result


def plan_footprint(
    config: RunConfig,
    gpus: int,
    gpu_memory: int,
    rows: int | None = None,
    test_rows: int | None = None,
    ceilings: Ceilings | None = None,
) -> Footprint:
    """Plans a run on `gpus` devices of `gpu_memory` bytes each, without network access.

    Args:
        config: of the run.
        gpus: number of devices.
        gpu_memory: bytes of each device.
        rows, test_rows: training and test rows of every task, used if the data is not available.
        ceilings: of the machine; None: times are not computed.

    Raises:
        UserError: the model is unknown, or the configuration cannot run on this number of devices.
    """
    for option, value in (("--gpus", gpus), ("--rows", rows), ("--test-rows", test_rows)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1")
    if find_domain(config) is not TEXT:
        raise UserError(
            f"task_file {config.task_file}: is one of images, which are not planned; codyra train --dry_run says what "
            "a run has to do"
        )
    train = config.train
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, gpus)
    source = find_source(config.model.name_or_path)
    model, projections = model_on_meta(config, source)
    of_branches = sum(p.numel() for _, layer in gated_layers(model) for p in (layer.A, layer.B, layer.gate))
    parameters = sum(p.numel() for p in model.parameters()) - of_branches
    workload = _workload(config, source, gpus, rows, test_rows)
    sizes = ModelSizes.of(model, train.adam_bits)
    relative_cost = METHODS[config.method](config).relative_cost + _cost_of_retention(config, workload)
    of_steps = StepModel(Shape.of(model, sizes), ceilings, relative_cost) if ceilings else None
    ways = _ways(config, model, sizes, workload, gpus, gpu_memory, of_steps)
    planned = Footprint(
        model=config.model.name_or_path,
        architecture=type(model).__name__,
        attention=str(model.config._attn_implementation),
        dtype=config.model.quantization or config.model.dtype,
        parameters=parameters,
        trainable=sizes.trainable,
        projections=projections,
        gpus=gpus,
        gpu_memory=gpu_memory,
        global_batch=train.global_batch_size,
        micro_batch=micro,
        accumulation=accumulation,
        workload=workload,
        checkpoint=(3 * sizes.trainable + sizes.gates) * FP32,  # values, two moments, the gates' importance
        ledger=(sizes.trainable - sizes.gates) * FP32,  # gates are folded into B
        relative_cost=relative_cost,
        ways=ways,
    )
    return _with_time(planned, config, of_steps) if of_steps else planned


def model_on_meta(config: RunConfig, source: Source) -> tuple[PreTrainedModel, list[str]]:
    """Builds the model of a run's first task, with branches, on the meta device; also returns the wrapped projections.

    Raises:
        UserError: the model is unknown, or the adapter is incompatible with it.
    """
    attention = config.model.attn_implementation
    # flash_attention_2 saves the same tensors as fused attention, and is not available without a GPU
    options = {} if attention is None else {"attn_implementation": attention.replace("flash_attention_2", "sdpa")}
    model = meta_model(source.config, dtype=getattr(torch, config.model.dtype), **options)
    method = METHODS[config.method](config)
    check_adapter(model, method.adapter)
    if config.model.quantization:
        stand_in(model, config.model.quantization)
    projections = method.wrap(model)
    for _, layer in gated_layers(model):
        method.size_branch(layer)
    return model, projections


def needed(memory: RankMemory) -> int:
    """Returns the bytes that a GPU should have for a way of running: its peak with a margin, and `RESERVED`."""
    return int(memory.peak * MARGIN + RESERVED)


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as "80GB" (10^9 each) or "80GiB" (2^30 each).

    Raises:
        UserError: the text is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not match or match[2].upper() not in UNITS or not 0 < float(match[1]) < 1e9:
        raise UserError(f'"{text}" is not a size of memory; give one like 80GB, 24GiB or 16000MB')
    return int(float(match[1]) * UNITS[match[2].upper()])


def _with_time(planned: Footprint, config: RunConfig, of_steps: StepModel) -> Footprint:
    """Returns the plan with the time of its first way that fits, if there is one."""
    best = planned.recommended
    if not best or not best.time:
        return planned
    of_steps = dataclasses.replace(of_steps, shape=dataclasses.replace(of_steps.shape, touched=best.touched))
    stage, free = int(zero_of(best.deepspeed).stage), planned.gpu_memory - best.memory.held
    whole = stage < 3 or holds_whole(config.evaluate.gather, of_steps.shape.weights, free)
    files, work = Files(planned.checkpoint, planned.ledger, len(planned.projections)), planned.workload
    how = files, planned.gpus, stage, whole
    time = run_time(config, of_steps, best.time, work.steps, work.questions, *how)
    return dataclasses.replace(planned, time=time)


def _ways(
    config: RunConfig,
    model: PreTrainedModel,
    sizes: ModelSizes,
    workload: Workload,
    gpus: int,
    gpu_memory: int,
    of_steps: StepModel | None,
) -> list[Way]:
    train = config.train
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, gpus)
    order = [(name, None if name == "zero0" else f"ds_configs/{name}.json", recompute) for name, recompute in ORDER]
    if config.deepspeed and config.deepspeed not in [file for _, file, _ in order]:  # the user's own comes first
        order = [(config.deepspeed, config.deepspeed, recompute) for recompute in (False, True)] + order
    passes: dict[tuple[bool, bool], tuple[int, int, int]] = {}
    ways = []
    for name, file, recompute in order:
        zero = zero_of(file)
        if zero.stage not in METHODS[config.method].needs.zero_stages:
            continue
        kind = (recompute, zero.stage == 3)
        if kind not in passes:
            passes[kind] = pass_bytes(model, micro, workload.length, micro * workload.answer_length, *kind)
        activations, touched, forward = passes[kind]
        memory = rank_memory(sizes, zero, gpus, accumulation, activations)
        traffic = step_traffic(sizes, zero, gpus, accumulation, recompute)
        rows = micro, workload.length, workload.mean, workload.answer_length
        how = accumulation, touched, traffic, zero, gpus, recompute
        time = of_steps.step(rows, *how) if of_steps else None
        fits, of_token = needed(memory) <= gpu_memory, forward / micro / workload.length
        ways.append(Way(name, file, recompute, memory, traffic, fits, time, of_token))
    return ways


def zero_of(deepspeed: str | None) -> DeepSpeedZeroConfig:
    """Returns the section "zero_optimization" of a DeepSpeed JSON; for None, that of stage 0."""
    return DeepSpeedZeroConfig(**read_deepspeed_json(deepspeed).get("zero_optimization", {}))


def _cost_of_retention(config: RunConfig, workload: Workload) -> float:
    """Returns the relative FLOPs that retention adds to a step with rows of planned length and texts of full length."""
    texts = config.retention.texts_per_step * config.retention.text_length if config.retention.own_text else 0
    rows = config.train.global_batch_size * workload.length
    return cost_of(config.retention, texts / rows)


def _workload(config: RunConfig, source: Source, gpus: int, rows: int | None, test_rows: int | None) -> Workload:
    """Returns the workload from tokenized data if data and tokenizer are available, else from configured limits."""
    data = config.data
    specs, orders, _ = read_task_file(resolve_path(config.task_file))
    names = resolve_order(config.order, orders, specs, config.task_file)
    folder = resolve_path(config.data_dir)
    here = folder.is_dir()
    if here and _has_tokenizer(source):
        return _of_tokens(config, plan_run(config, Ranks(0, gpus, torch.device("cpu")), source=source), folder)
    prompts = {name: data.max_prompt_length or specs[name].max_prompt_length for name in names}
    tests = dict.fromkeys(names, test_rows)
    basis = "limits of the configuration; "
    if here:
        limits = data.max_train_examples, data.max_test_examples
        stream = TaskStream.load(resolve_path(config.task_file), folder, config.order, *limits)
        counts: dict[str, int | None] = {task.name: len(task.train) for task in stream}
        tests = {task.name: len(task.test) for task in stream}
        basis += f"rows of {folder}, not tokenized: the model's tokenizer is not on this machine"
    else:
        counts = dict.fromkeys(names, rows)
        basis += f"data not found: {config.data_dir}"
        basis += f"; --rows {rows} for each task" if rows else "; --rows N would give the steps"
    steps = {
        name: None if count is None else _steps(config, name, specs[name], count) for name, count in counts.items()
    }
    questions: dict[str, Questions | None] = {}
    for name, count in tests.items():
        new = new_tokens(specs[name], config.evaluate)
        answer = min(new or data.max_answer_length, data.max_answer_length)
        questions[name] = None if count is None else Questions(count, prompts[name], answer, new)
    length = max(prompts.values()) + data.max_answer_length
    return Workload(length, data.max_answer_length, steps, basis, length, questions)


def _of_tokens(config: RunConfig, planned: RunPlan, folder: Path) -> Workload:
    """Returns the workload of a planned run, from its tokenized rows."""
    lengths = [(len(row), row.learned) for batches in planned.batches for row in batches.examples]
    steps: dict[str, int | None] = {batches.task: batches.total_steps for batches in planned.batches}
    longest, longest_answer = map(max, zip(*lengths, strict=True))
    mean = sum(length for length, _ in lengths) / len(lengths)
    questions: dict[str, Questions | None] = {}
    for task, rows in zip(planned.stream, planned.test_examples, strict=True):
        prompt = sum(len(row.prompt) for row in rows) / len(rows)
        answer = sum(len(row.answer) for row in rows) / len(rows)
        questions[task.name] = Questions(len(rows), prompt, answer, new_tokens(task.spec, config.evaluate))
    return Workload(longest, longest_answer, steps, f"longest rows of {folder}", mean, questions)


def _steps(config: RunConfig, name: str, spec: TaskSpec, rows: int) -> int:
    train = config.train
    epochs, steps = length_of(train, spec)
    stand_ins = [Example([], [])] * rows
    return GlobalBatches(stand_ins, train.global_batch_size, 1, epochs, config.seed, name, steps=steps).total_steps


def _has_tokenizer(source: Source) -> bool:
    try:
        return bool(source.tokenizer)
    except UserError:
        return False
