"""The plan of a run: every way of running it on so many GPUs, what each needs, and the first that fits."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import PreTrainedModel

from codyra_llm.adapter.injection import inject
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.data.batches import GlobalBatches, divide_batch
from codyra_llm.data.stream import TaskSpec, TaskStream, read_task_file, resolve_order
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.retention import cost_of
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.models.architectures import find_source
from codyra_llm.models.load import meta_model
from codyra_llm.models.source import Source
from codyra_llm.planning.activations import activation_bytes
from codyra_llm.planning.memory import FP32, ModelSizes, RankMemory, Traffic, rank_memory, step_traffic
from codyra_llm.planning.quantized import stand_in
from codyra_llm.planning.run_plan import check_adapter, plan_run

# (way, recompute), what moves and recomputes least first
ORDER = (
    *[(way, recompute) for recompute in (False, True) for way in ("zero0", "zero1", "zero2")],
    *[(way, recompute) for way in ("zero3", "zero2-offload", "zero3-offload") for recompute in (False, True)],
)
MARGIN = 1.1
RESERVED = 1.5e9  # CUDA's context and the workspaces of cuBLAS and NCCL: an assumption, not a measurement
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Workload:
    """The longest micro batch, and the optimizer steps of each task (None where the rows are not known).

    `length` and `answer_length` are tokens of one row, `source` says where all this is from.
    """

    length: int
    answer_length: int
    steps: dict[str, int | None]
    source: str


@dataclass(frozen=True)
class Way:
    """One way of running: a DeepSpeed file (none: stage 0), with or without gradient checkpointing."""

    name: str
    deepspeed: str | None
    checkpointing: bool
    memory: RankMemory
    traffic: Traffic
    fits: bool


@dataclass(frozen=True)
class Footprint:
    """All that is planned. `checkpoint` and `ledger` are bytes, the ledger's of one task at full rank.

    `relative_cost` is what an optimizer step costs, in FLOPs of fixed-rank LoRA's: what the method and retention add.
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

    @property
    def recommended(self) -> Way | None:
        """The first way that fits."""
        return next((way for way in self.ways if way.fits), None)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it, sums included."""
        result = dataclasses.asdict(self)
        for way, entry in zip(self.ways, result["ways"], strict=True):
            entry["memory"] |= {"peak": way.memory.peak, "host_peak": way.memory.host_peak, "needs": needed(way.memory)}
            entry["traffic"]["network"] = way.traffic.network
        best = self.recommended
        result["recommended"] = best and {"deepspeed": best.deepspeed, "checkpointing": best.checkpointing}
        return result


def plan_footprint(config: RunConfig, gpus: int, gpu_memory: int, rows: int | None = None) -> Footprint:
    """Plans a run on `gpus` devices of `gpu_memory` bytes each; nothing is asked of a network.

    Args:
        config: of the run.
        gpus, gpu_memory: number of devices, bytes of each.
        rows: training rows of every task, for where the data is not at hand.

    Raises:
        UserError: the model is unknown, or the configuration cannot run on so many devices.
    """
    for option, value in (("--gpus", gpus), ("--rows", rows)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1")
    train = config.train
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, gpus)
    source = find_source(config.model.name_or_path)
    model, projections = model_on_meta(config, source)
    of_branches = sum(p.numel() for _, layer in gated_layers(model) for p in (layer.A, layer.B, layer.gate))
    parameters = sum(p.numel() for p in model.parameters()) - of_branches
    workload = _workload(config, source, gpus, rows)
    sizes = ModelSizes.of(model, train.adam_bits)
    return Footprint(
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
        ledger=(sizes.trainable - sizes.gates) * FP32,  # gates are folded in
        relative_cost=METHODS[config.method](config).relative_cost + _cost_of_retention(config, workload),
        ways=_ways(config, model, sizes, workload, gpus, gpu_memory),
    )


def model_on_meta(config: RunConfig, source: Source) -> tuple[PreTrainedModel, list[str]]:
    """The model with its branches as a run's first task has it, without memory; and the wrapped projections.

    Raises:
        UserError: the model is unknown, or the adapter does not fit it.
    """
    attention = config.model.attn_implementation
    # flash_attention_2 keeps what fused attention keeps, and cannot be chosen without a GPU
    options = {} if attention is None else {"attn_implementation": attention.replace("flash_attention_2", "sdpa")}
    model = meta_model(source.config, dtype=getattr(torch, config.model.dtype), **options)
    method = METHODS[config.method](config)
    check_adapter(model, method.adapter)
    if config.model.quantization:
        stand_in(model, config.model.quantization)
    projections = inject(model, method.adapter)
    for _, layer in gated_layers(model):
        method.size_branch(layer)
    return model, projections


def needed(memory: RankMemory) -> int:
    """Bytes that a GPU should have for a way of running: its peak, the margin, and what is not the program's."""
    return int(memory.peak * MARGIN + RESERVED)


def parse_size(text: str) -> int:
    """Bytes of "80GB" (10^9 each) or "80GiB" (2^30 each).

    Raises:
        UserError: it is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not match or match[2].upper() not in UNITS or not 0 < float(match[1]) < 1e9:
        raise UserError(f'"{text}" is not a size of memory; give one like 80GB, 24GiB or 16000MB')
    return int(float(match[1]) * UNITS[match[2].upper()])


def _ways(
    config: RunConfig, model: PreTrainedModel, sizes: ModelSizes, workload: Workload, gpus: int, gpu_memory: int
) -> list[Way]:
    train = config.train
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, gpus)
    order = [(name, None if name == "zero0" else f"ds_configs/{name}.json", recompute) for name, recompute in ORDER]
    if config.deepspeed and config.deepspeed not in [file for _, file, _ in order]:  # the user's own comes first
        order = [(config.deepspeed, config.deepspeed, recompute) for recompute in (False, True)] + order
    activations: dict[tuple[bool, bool], int] = {}
    ways = []
    for name, file, recompute in order:
        zero = DeepSpeedZeroConfig(**read_deepspeed_json(file).get("zero_optimization", {}))
        if zero.stage not in METHODS[config.method].needs.zero_stages:
            continue
        kind = (recompute, zero.stage == 3)
        if kind not in activations:
            activations[kind] = activation_bytes(model, micro, workload.length, micro * workload.answer_length, *kind)
        memory = rank_memory(sizes, zero, gpus, accumulation, activations[kind])
        traffic = step_traffic(sizes, zero, gpus, accumulation, recompute)
        ways.append(Way(name, file, recompute, memory, traffic, needed(memory) <= gpu_memory))
    return ways


def _cost_of_retention(config: RunConfig, workload: Workload) -> float:
    """FLOPs that retention adds to a step of rows of the planned length, whose texts are as long as they may be."""
    texts = config.retention.texts_per_step * config.retention.text_length if config.retention.own_text else 0
    rows = config.train.global_batch_size * workload.length
    return cost_of(config.retention, texts / rows)


def _workload(config: RunConfig, source: Source, gpus: int, rows: int | None) -> Workload:
    """From the tokenized data where data and tokenizer are here, else from the configuration's limits."""
    data = config.data
    specs, orders, _ = read_task_file(resolve_path(config.task_file))
    names = resolve_order(config.order, orders, specs, config.task_file)
    folder = resolve_path(config.data_dir)
    here = folder.is_dir()
    if here and _has_tokenizer(source):
        planned = plan_run(config, Ranks(0, gpus, torch.device("cpu")), source=source)
        lengths = [(len(row), row.learned) for batches in planned.batches for row in batches.examples]
        steps: dict[str, int | None] = {batches.task: batches.total_steps for batches in planned.batches}
        longest, longest_answer = map(max, zip(*lengths, strict=True))
        return Workload(longest, longest_answer, steps, f"longest rows of {folder}")
    prompt = max(data.max_prompt_length or specs[name].max_prompt_length for name in names)
    basis = "limits of the configuration; "
    if here:
        stream = TaskStream.load(resolve_path(config.task_file), folder, config.order, data.max_train_examples)
        counts: dict[str, int | None] = {task.name: len(task.train) for task in stream}
        basis += f"rows of {folder}, not tokenized: the model's tokenizer is not on this machine"
    else:
        counts = dict.fromkeys(names, rows)
        basis += f"data not found: {config.data_dir}"
        basis += f"; --rows {rows} for each task" if rows else "; --rows N would give the steps"
    steps = {
        name: None if count is None else _steps(config, name, specs[name], count) for name, count in counts.items()
    }
    return Workload(prompt + data.max_answer_length, data.max_answer_length, steps, basis)


def _steps(config: RunConfig, name: str, spec: TaskSpec, rows: int) -> int:
    train = config.train
    epochs = train.num_train_epochs or spec.epochs
    stand_ins = [Example([], [])] * rows
    return GlobalBatches(stand_ins, train.global_batch_size, 1, epochs, config.seed, name).total_steps


def _has_tokenizer(source: Source) -> bool:
    try:
        return bool(source.tokenizer)
    except UserError:
        return False
