"""Access to parameters at any ZeRO stage. No code outside this folder depends on ZeRO.

At stage 3 a parameter is a flat slice on each rank (`ds_tensor`) and its `data` is empty unless gathered; at every
other stage, parameters are whole.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merging import Deltas, Fill, add_delta_in_place, check_reach, largest_magnitude, sum_in_tiles
from codyra_llm.config import RunConfig
from codyra_llm.distributed.environment import local_size
from codyra_llm.distributed.ranks import Ranks, all_gather, local_rank_in_environment
from codyra_llm.engine.ds_config import complete, zero_stage
from codyra_llm.engine.malloc import return_large_blocks
from codyra_llm.engine.probe import check_forward
from codyra_llm.errors import UserError
from codyra_llm.models.family import read_by_parents
from codyra_llm.models.load import Place, load_model
from codyra_llm.models.quantize import dequantized, is_quantized, quantized, set_weight
from codyra_llm.models.shards import checkpoint_tensors
from codyra_llm.models.source import Source

LOG = logging.getLogger(__name__)
# room in memory beside the whole weights in an evaluation, for the KV cache, activations and logits
EVALUATION_MARGIN = 1.25


def placement(ds_config: dict[str, Any], ranks: Ranks) -> Place | None:
    """Returns the function that places a base weight, at stage 3 as this rank's slice; None where weights are whole.

    Args:
        ds_config: a complete DeepSpeed configuration, with batch sizes.
        ranks: the ranks of the run.
    """
    if zero_stage(ds_config) != 3:
        return None

    return_large_blocks()

    @local_rank_in_environment()
    def place(shape: torch.Size, dtype: torch.dtype, fill: Fill) -> nn.Parameter:
        weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=ranks.device), requires_grad=False)
        deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=ds_config)
        fill(*_own_slice(weight))
        return weight

    return place


def load_base(
    source: Source,
    config: RunConfig,
    deepspeed_json: dict[str, Any],
    ranks: Ranks,
    warn: Callable[[str], None],
    check: Callable[[PreTrainedModel, str], None] = check_forward,
) -> PreTrainedModel:
    """Loads the base model onto the device of each rank, whole or, at stage 3, partitioned.

    Args:
        source: the model of the configuration.
        config: the configuration of the run.
        deepspeed_json: the user's part of the DeepSpeed configuration.
        ranks: the ranks of the run.
        warn: called with warnings for the user about how the model was loaded.
        check: called with the model and its name; raises UserError if the model cannot be run as the domain runs it.

    Raises:
        UserError: it cannot be loaded, has weights that are not finite, or fails `check`.
    """
    place, settings = placement(complete(deepspeed_json, config.train, ranks.size), ranks), config.model
    model = load_model(
        source, settings.dtype, settings.attn_implementation, place, warn, settings.quantization, ranks.device
    )
    if not place:
        model = model.to(ranks.device)  # type: ignore[arg-type]
    else:
        for buffer in model.buffers():
            buffer.data = buffer.data.to(ranks.device)
        for module, weight in read_by_parents(model):
            deepspeed.zero.register_external_parameter(module, weight)
    if damaged := first_not_finite(model.named_parameters()):
        raise UserError(
            f"model.name_or_path {source.name}: {damaged} holds values that are not finite in {settings.dtype}: its "
            "file is damaged, or they leave the range of the dtype; try another model.dtype"
        )
    with gathered_for_inference(model, "never", ranks):
        check(model, source.name)
    return model


def first_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Returns the name of the first weight with a value that is not finite, the same on every rank; all must call."""
    damaged = (
        name
        for name, weight in weights
        if weight.is_floating_point() and not math.isfinite(largest_magnitude(_own_values(weight)))
    )
    return next(filter(None, all_gather(next(damaged, None))), None)


def check_updates(model: PreTrainedModel, updates: Deltas, task: str) -> None:
    """Checks, before a task's updates are merged into a model, that weights stay in the range of their dtype.

    Raises:
        UserError: on every rank, if the weights of any projection may leave it (`check_reach`).
    """
    problems = []
    for name, factors in updates.items():
        projection: Any = model.get_submodule(name)
        weight = projection.weight
        if is_quantized(projection):  # dequantized, it is computed with and saved in the model's dtype
            with deepspeed.zero.GatheredParameters([weight], enabled=is_zero_param(weight)):
                dtype, largest = model.dtype, largest_magnitude(dequantized(projection))
        else:
            dtype, largest = weight.dtype, largest_magnitude(_own_values(weight))
        try:
            check_reach(name, dtype, largest, *factors)
        except ValueError as error:
            problems.append(str(error))
    found = next(filter(None, all_gather(problems[:1])), None)
    if found:
        raise UserError(f"task {task}: {found[0]}; lower train.learning_rate, or use a model.dtype of wider range")


@contextmanager
def gathered_for_inference(model: nn.Module, how: str, ranks: Ranks) -> Iterator[bool]:
    """Makes a partitioned model callable outside the engine; yields True if every forward is a collective.

    Args:
        model: the model, whole or partitioned.
        how: "always" gathers all weights on every rank; "never" gathers the weights of a module while it runs, which
            takes all ranks; "auto" is "always" if that fits the memory of every rank, else "never".
        ranks: the ranks of the run.
    """
    weights = [weight for weight in model.parameters() if is_zero_param(weight)]
    if weights and how == "auto":
        how = "always" if _fits(weights, ranks) else "never"
        LOG.info(f"evaluation: weights are gathered {'once' if how == 'always' else 'module by module'}")
    if how == "always" or not weights:
        with deepspeed.zero.GatheredParameters(weights, enabled=bool(weights)):
            yield False
        return
    handles = _gather_module_by_module(model)
    try:
        yield ranks.size > 1
    finally:
        for handle in handles:
            handle.remove()


def weight_layout(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns name, whole shape and dtype of each weight of a checkpoint, on the meta device; tied weights once."""
    return {
        name: torch.empty(getattr(weight, "ds_shape", weight.shape), dtype=weight.dtype, device="meta")
        for name, weight in checkpoint_tensors(model).items()
    }


def whole_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights of a checkpoint, one by one, whole and on the CPU of rank 0; empty elsewhere if partitioned.

    Every rank must iterate over all of them.
    """
    for name, weight in checkpoint_tensors(model).items():
        whole = _gather_on_main(weight) if is_zero_param(weight) else weight.detach()
        yield name, whole.cpu() if dist.get_rank() == 0 else whole


def compact_branches(model: nn.Module) -> None:
    """Removes components at zero, which never grow again, from the products of every branch from here on."""
    for _, layer in gated_layers(model):
        with deepspeed.zero.GatheredParameters([layer.gate], enabled=is_zero_param(layer.gate)):
            layer.compact()


def ungroup_branches(model: nn.Module) -> None:
    """Disables shared down-projections: ZeRO-3 gathers the factors of one module at a time."""
    for _, layer in gated_layers(model):
        if layer.shared is not None:
            layer.shared.dissolve()


def whole_copies(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns detached copies of parameters, whole on every rank; every rank must call it."""
    partitioned = [parameter for parameter in parameters if is_zero_param(parameter)]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        return [parameter.detach().clone() for parameter in parameters]


def unpartition_branches(model: nn.Module) -> None:
    """Makes A, B and gate of every branch ordinary whole parameters again, on every rank."""
    for _, layer in gated_layers(model):
        names = [name for name in ("A", "B", "gate") if is_zero_param(getattr(layer, name))]
        parameters = [getattr(layer, name) for name in names]
        for name, parameter, value in zip(names, parameters, whole_copies(parameters), strict=True):
            setattr(layer, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


@torch.no_grad()
def add_delta(projection: nn.Module, B: torch.Tensor, A: torch.Tensor, original: Fill | None = None) -> None:
    """Sets weight = round(original + B @ A), computed in fp32, without moving a base weight.

    Under ZeRO-3 each rank sets its own slice. With the stacked factors of all finished tasks and the run's original
    weight, the weight is rounded once, however many tasks there were.

    Args:
        projection: a projection without a branch.
        B: [out_features, rank], fp32, whole on every rank.
        A: [rank, in_features], fp32, whole on every rank.
        original: fills in the weight to add to; by default the projection's own weight, in place.

    Raises:
        ValueError: the projection is quantized and partitioned, and no original is given.
    """
    if original is not None and is_quantized(projection):
        _requantize(projection, B, A, original)
        return
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]
    own, start = weight.view(-1), 0
    if is_zero_param(weight):
        if is_quantized(projection):
            raise ValueError("a slice of quantized weights cannot be added to; give the original")
        weight.partition()  # type: ignore[attr-defined]  # a persistent small weight also has a whole copy; drop it
        own, start = _own_slice(weight)
    elif original is None:
        add_delta_in_place(projection, B, A)
        return

    def as_it_is(part: torch.Tensor, begin: int) -> None:
        part.copy_(own[begin - start : begin - start + len(part)])

    for begin, values in sum_in_tiles(original or as_it_is, B, A, start, start + len(own)):
        own[begin - start : begin - start + len(values)].copy_(values)


def _requantize(layer: Any, B: torch.Tensor, A: torch.Tensor, original: Fill) -> None:
    """weight = quantize(original + B @ A): one weight at a time is whole in fp32; a partitioned one keeps its slice."""
    values = torch.empty(len(B), A.shape[1], dtype=torch.float32, device=B.device)
    for begin, tile in sum_in_tiles(original, B, A, 0, values.numel()):
        values.view(-1)[begin : begin + len(tile)] = tile
    packed, weight = quantized(layer, values), layer.weight
    if not is_zero_param(weight):
        set_weight(layer, packed)
        return
    weight.partition()
    own, start = _own_slice(weight)
    own.copy_(packed.view(-1)[start : start + len(own)])
    set_weight(layer, weight, packed.quant_state)


def parameter_count(model: nn.Module) -> int:
    """Number of values in the model's parameters, each counted once, whole or partitioned."""
    return sum(_values(parameter) for parameter in model.parameters())


def trainable_count(model: nn.Module) -> int:
    """Number of trainable values, whole or partitioned."""
    return sum(_values(parameter) for parameter in model.parameters() if parameter.requires_grad)


def _values(parameter: Any) -> int:
    if getattr(parameter, "quant_state", None):  # it stores two values in a byte
        return parameter.quant_state.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


def _own_values(weight: torch.Tensor) -> torch.Tensor:
    return _own_slice(weight)[0] if is_zero_param(weight) else weight


def _own_slice(weight: Any) -> tuple[torch.Tensor, int]:
    """Returns (this rank's values of a partitioned weight, flat and without padding; their offset)."""
    own = weight.ds_tensor.data
    start = dist.get_rank(weight.ds_process_group) * own.numel()
    return own[: max(0, weight.ds_numel - start)], start


def _gather_on_main(weight: Any) -> torch.Tensor:
    """Gathers a partitioned weight on rank 0; returns an empty tensor on other ranks."""
    world_size, device = dist.get_world_size(), get_accelerator().current_device_name()
    own = weight.ds_tensor.data.to(device).view(torch.uint8)  # backends support bytes, but not every dtype
    parts = [torch.empty(0, dtype=torch.uint8)] * world_size
    whole = torch.empty(own.numel() * world_size if dist.get_rank() == 0 else 0, dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        parts = list(whole.chunk(world_size))
    dist.gather(own, parts if dist.get_rank() == 0 else None)
    return whole.view(weight.dtype)[: weight.ds_numel].view(weight.ds_shape) if dist.get_rank() == 0 else whole


def _fits(weights: list[Any], ranks: Ranks) -> bool:
    """True if every rank has the memory for all whole weights, in addition to its slices."""
    needed = sum(w.ds_numel * w.element_size() for w in weights if ranks.size > 1 or w.ds_tensor.device != w.device)
    if ranks.device.type == "cuda":
        cached = torch.cuda.memory_reserved(ranks.device) - torch.cuda.memory_allocated(ranks.device)
        free = torch.cuda.mem_get_info(ranks.device)[0] + cached
    else:
        free = get_accelerator().available_memory() // local_size()
    return all(all_gather(needed * EVALUATION_MARGIN <= free))


def _gather_module_by_module(model: nn.Module) -> list[Any]:
    """Registers hooks that gather the weights of a module before it runs and partition them after; returns the handles.

    A weight that a parent reads as well (`read_by_parents`) is gathered for the parent, which runs around its child.
    """
    running: dict[nn.Module, Any] = {}
    weights: dict[nn.Module, list[Any]] = {}
    of_parents = list(read_by_parents(model))
    taken = {id(weight) for _, weight in of_parents}
    for module in model.modules():
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in taken]
        weights[module] = own + [weight for parent, weight in of_parents if parent is module]

    def before(module: nn.Module, args: Any) -> None:
        # tensors created in inference mode could not be trained through later
        with torch.inference_mode(False):
            running[module] = deepspeed.zero.GatheredParameters(weights[module])
            running[module].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        with torch.inference_mode(False):
            running.pop(module).__exit__(None, None, None)

    handles: list[Any] = []
    for module, needed in weights.items():
        if any(map(is_zero_param, needed)):
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
    return handles
