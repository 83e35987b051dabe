"""Loads LLaMA, Gemma, CLIP and similar models from a hub id, an HF folder, a GGUF file, or the built-in small model."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from codyra_llm.adapter.merging import Fill, largest_magnitude
from codyra_llm.errors import UserError, reason
from codyra_llm.models.family import hold_scalars, model_class
from codyra_llm.models.folder import weight_files
from codyra_llm.models.quantize import (
    check_loaded_widths,
    is_quantized,
    keep_trainable,
    quantize_structure,
    quantized,
    set_weight,
)
from codyra_llm.models.shards import ShardReader, checkpoint_tensors, names_in_files
from codyra_llm.models.source import Source, open_source, source_problem

# place(shape, dtype, fill) creates the parameter for a weight, and fills the part of it that this process keeps
Place = Callable[[torch.Size, torch.dtype, Fill], nn.Parameter]


def meta_model(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Builds the model on the meta device, which takes no memory; `options` are those of `from_config`.

    Raises:
        UserError: no model can be built from the configuration.
    """
    try:
        return _meta_model(config, **options)
    except Exception as error:  # the model's code may raise anything for invalid sizes
        name = config.name_or_path or type(config).__name__
        raise UserError(f"model {name}: its configuration describes no model: {reason(error)}; restore it") from None


def _meta_model(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return _new(config, options)


def _new(config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    # a copy of the configuration, as the model's own may be changed
    model = model_class(config).from_config(copy.deepcopy(config), trust_remote_code=False, **options)
    return hold_scalars(model)


def load_model(
    source: Source | str,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    place: Place | None = None,
    warn: Callable[[str], None] = lambda line: None,
    quantization: str | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Loads a model in evaluation mode, with weights in `dtype`.

    Args:
        source: the model; a name is opened first.
        dtype: of the weights: float32, bfloat16 or float16.
        attn_implementation: as in transformers; None: its default.
        place: creates each parameter, and reads as much of it as this process keeps; None: whole weights, on the CPU.
        warn: called with one line if weights cannot be read in parts.
        quantization: "nf4" or "int8": the projections are quantized on `device`, one after another as they are read,
            so that at most one is in memory in fp32.
        device: where weights are quantized.

    Raises:
        UserError: the weights are missing or damaged, or `attn_implementation` is not available.
    """
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    options["dtype"] = getattr(torch, dtype)
    source = open_source(source) if isinstance(source, str) else source
    try:
        if quantization:
            model = _load_quantized(source, options, quantization, torch.device(device), place)
        else:
            model = _load_whole(source, options) if place is None else _load_placed(source, options, place, warn)
    except _MissingWeights as error:
        raise UserError(f"model.name_or_path {source.name}: {error}; give a complete model") from None
    except UserError:
        raise
    except Exception as error:  # a faulty folder raises errors of several libraries
        chosen = "" if attn_implementation is None else f" with model.attn_implementation {attn_implementation}"
        raise UserError(
            f"model.name_or_path {source.name}: cannot be loaded{chosen}: {source_problem(error)}"
        ) from None
    check_loaded_widths(model)
    keep_trainable(model)
    return model.eval()


def original_weights(source: Source | str) -> Callable[[str], Fill]:
    """Returns a function that reads any part of a weight from the model's files, by its name in the model.

    Nothing is kept in memory: each call reads from the files.

    Raises:
        OSError, ValueError: the files cannot be read in parts.
    """
    source = open_source(source) if isinstance(source, str) else source
    return _weights(source, meta_model(source.config))


class _MissingWeights(Exception):
    pass


def _load_whole(source: Source, options: dict[str, Any]) -> PreTrainedModel:
    loaded: Any = model_class(source.config).from_pretrained(
        source.path,
        config=source.config,
        **options,
        low_cpu_mem_usage=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers initializes them at random
        raise _MissingWeights(f"{len(missing)} weights are missing, {missing[0]} the first")
    return hold_scalars(model)


def _load_placed(source: Source, options: dict[str, Any], place: Place, warn: Callable[[str], None]) -> PreTrainedModel:
    model = _structure(source, options)
    try:
        read = _weights(source, model)
    except (OSError, ValueError) as error:
        warn(f"weights cannot be read in parts, so each process loads all of them first: {reason(error)}")
        model = _load_whole(source, options)
        _place_weights(model, place, lambda name, weight: functools.partial(copy_part, weight))
        return model
    _fill_buffers(model, read)
    _place_weights(model, place, lambda name, weight: read(name))
    return model


def _load_quantized(
    source: Source, options: dict[str, Any], quantization: str, device: torch.device, place: Place | None
) -> PreTrainedModel:
    model = _structure(source, options)
    try:
        read = _weights(source, model)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.quantization needs weights that can be read in parts: {reason(error)}") from None
    _fill_buffers(model, read)
    quantize_structure(model, quantization)

    def whole(shape: torch.Size, dtype: torch.dtype, fill: Fill) -> nn.Parameter:
        weight = torch.empty(shape, dtype=dtype, device=device)
        fill(weight.view(-1), 0)
        return nn.Parameter(weight, requires_grad=False)

    for name, module in model.named_modules():
        if is_quantized(module):
            weight: Any = module.weight
            values = whole(weight.shape, torch.float32, read(f"{name}.weight")).data
            if not math.isfinite(largest_magnitude(values)):  # a scale would spread the value, or hide it
                raise ValueError(f"{name}.weight holds values that are not finite; its file is damaged")
            packed = quantized(module, values)
            if place is None:
                set_weight(module, packed)
            else:
                part = place(packed.shape, packed.dtype, functools.partial(copy_part, packed))
                set_weight(module, part, packed.quant_state)
    _place_weights(model, place or whole, lambda name, weight: read(name))
    return model


def _structure(source: Source, options: dict[str, Any]) -> PreTrainedModel:
    with _parameters_on_meta():
        model = _new(source.config, options)
    read_generation_config(source, model)
    return model


def read_generation_config(source: Source, model: PreTrainedModel) -> None:
    """Sets a model's generation config from generation_config.json; without that file it keeps its own.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        cached_file(source.path, GENERATION_CONFIG_NAME)
    except OSError:
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(source.path)
    except Exception as error:
        raise ValueError(f"{GENERATION_CONFIG_NAME} cannot be read: {reason(error)}") from None


def _weights(source: Source, model: PreTrainedModel) -> Callable[[str], Fill]:
    reader = ShardReader(weight_files(source.path))
    names = _names_of_weights(model, reader)
    return lambda name: functools.partial(reader.read, names[name])


def _fill_buffers(model: PreTrainedModel, read: Callable[[str], Fill]) -> None:
    for name, tensor in checkpoint_tensors(model).items():
        if not isinstance(tensor, nn.Parameter):
            read(name)(tensor.view(-1), 0)


def _place_weights(model: PreTrainedModel, place: Place, source: Callable[[str, nn.Parameter], Fill]) -> None:
    """Replaces each weight, except quantized ones, by the parameter that `place` creates; tied weights stay tied."""
    placed: dict[nn.Parameter, nn.Parameter] = {}
    for module_name, module in model.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if name == "weight" and is_quantized(module):
                continue
            if weight not in placed:
                fill = source(f"{module_name}.{name}" if module_name else name, weight)
                placed[weight] = place(weight.shape, weight.dtype, fill)
                if not weight.is_meta:
                    weight.data = weight.data.new_empty(0)  # frees memory for the next weight
            module.register_parameter(name, placed[weight])


def copy_part(weight: torch.Tensor, part: torch.Tensor, start: int) -> None:
    """Copies a part of a weight in memory, from flat index `start` on; with `weight` bound, it is a `Fill`."""
    part.copy_(weight.detach().reshape(-1)[start : start + part.numel()])


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """A context in which modules are built with parameters on the meta device, without memory, and real buffers."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _names_of_weights(model: PreTrainedModel, reader: ShardReader) -> dict[str, str]:
    """Returns the name in the files of each weight of the model.

    Raises:
        ValueError: the weights of files and model differ in name or shape, or the model is quantized.
    """
    if getattr(model.config, "quantization_config", None):
        raise ValueError("they are quantized")
    tensors, found = checkpoint_tensors(model), reader.shapes
    names = {name: name for name in tensors}
    if not tensors.keys() <= found.keys():
        names = names_in_files(model, tensors)
    expected = {names[name]: tensor.shape for name, tensor in tensors.items()}
    if wrong := [name for name, shape in expected.items() if found.get(name) != shape]:
        raise ValueError(f"{min(wrong)} is not the same in the files and in the model")
    _check_tied(model, reader, names)
    return names


def _check_tied(model: PreTrainedModel, reader: ShardReader, names: dict[str, str]) -> None:
    """Raises ValueError if files contain a tied weight a second time, with different values.

    Other tensors of files that the model does not have (inv_freq of old LLaMA files, position_ids) are computed or not
    used.
    """
    stored = {id(tensor): names[name] for name, tensor in checkpoint_tensors(model).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = stored.get(id(tensor), name)
        if name not in (first, *names) and name in reader.shapes and reader.digest(name) != reader.digest(first):
            raise ValueError(
                f"{name} differs from {first}, to which config.json ties it; set tie_word_embeddings to false there"
            )
