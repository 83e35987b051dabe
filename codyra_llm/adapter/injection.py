"""Finds the projections of a model and wraps them in gated branches."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from codyra_llm.adapter import kernels
from codyra_llm.adapter import products as torch_products
from codyra_llm.adapter.config import DEFAULT_TARGETS, TOWER_TARGETS, CoDyRAConfig
from codyra_llm.adapter.layer import CoDyRALinear, SharedInput

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # kinds that read the same input

TOWERS = {"vision_model": "vision", "text_model": "text"}  # towers by the first part of their projections' names


def find_targets(model: nn.Module, config: CoDyRAConfig) -> list[str]:
    """Returns the names of the projections that `target_modules` and `target_layers` select, in the model's order.

    A target matches a projection by the last part of its name (q_proj), by a longer suffix (self_attn.q_proj), or by
    its kind (vision.q_proj). "all-linear" selects all but the head. "auto" selects the default targets if the model has
    all of them, or those of a tower if it has these and no head, else all-linear. In a model with a head, only its text
    decoder and the head are searched; in one without, such as CLIP, the whole model.

    Raises:
        ValueError: a target matches no projection (the message lists the existing ones), or one whose weight is tied
            to another module's, which a merge would change as well.
    """
    inside = {id(module) for part in _text_parts(model) for module in part.modules()}
    projections = {
        name: module for name, module in model.named_modules() if id(module) in inside and _is_projection(module)
    }
    targets = _named_targets(model, projections, config.target_modules)
    found = [name for name in projections if any(_matches(name, target) for target in targets)]
    for target in targets:
        if not any(_matches(name, target) for name in found):
            known = ", ".join(sorted(set(map(kind_of, projections)))) or "none"
            raise ValueError(f'target_modules: "{target}" matches no projection of this model; it has {known}')
    if "all" not in config.target_layers:
        layers = {name: number_of_layer(name) for name in projections}
        found = _in_layers(found, layers, list(map(str, config.target_layers)))
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name in found:
        if users[id(projections[name].weight)] > 1:
            raise ValueError(f"target_modules: the weight of {name} is tied to another module's; leave {name} out")
    return found


def number_of_layer(name: str) -> int | None:
    """Returns a projection's layer, the first number in its name: 3 of model.layers.3.mlp.up_proj; None without one."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return numbers[0] if numbers else None


def _in_layers(names: Sequence[str], layers: Mapping[str, int | None], wanted: Sequence[str]) -> list[str]:
    count = 1 + max((number for number in layers.values() if number is not None), default=-1)
    thirds = {"early": (0, count), "middle": (count, 2 * count), "late": (2 * count, 3 * count)}
    meant = {int(each) for each in wanted if each not in thirds}
    for each in thirds.keys() & set(wanted):
        low, high = thirds[each]
        meant |= {number for number in range(count) if low <= 3 * number < high}
    found = [name for name in names if layers[name] in meant]
    if missing := meant - set(range(count)):
        raise ValueError(f"target_layers: there is no layer {min(missing)}; this model has layers 0 to {count - 1}")
    if not found:
        raise ValueError(f"target_layers: no target is in {', '.join(wanted)} of the {count} layers")
    return found


def _named_targets(model: Any, projections: Mapping[str, Any], targets: Sequence[str]) -> Sequence[str]:
    """Returns the targets by name, resolving "auto" and "all-linear"."""
    if tuple(targets) not in (("auto",), ("all-linear",)):
        return targets
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, projection in projections.items() if projection is not head]
    if not names:
        raise ValueError(f"target_modules: {targets[0]} finds no linear layer in {type(model).__name__}")
    kinds = {name.rsplit(".", 1)[-1] for name in names}
    usual = [each for each in (DEFAULT_TARGETS, *([] if head else [TOWER_TARGETS])) if set(each) <= kinds]
    return usual[0] if usual and tuple(targets) == ("auto",) else names


def check_rank(model: nn.Module, names: Sequence[str], rank: int) -> None:
    """Raises ValueError if `rank` exceeds the largest rank that a projection's update can have."""
    for name in names:
        projection = model.get_submodule(name)
        largest = min(int(projection.in_features), int(projection.out_features))  # type: ignore[arg-type]
        if rank > largest:
            raise ValueError(f"rank is {rank}, but {name} holds at most {largest}; lower it or drop that target")


def inject(model: nn.Module, config: CoDyRAConfig | None = None, seed: int | str = 0) -> list[str]:
    """Freezes the model and wraps its target projections, in place; only the branches remain trainable.

    The initial values depend on the seed and on the projection's name alone: not on the device, the number of processes
    or the other targets.

    Returns:
        The names of the wrapped projections.

    Raises:
        ValueError: see `find_targets`; or the model is already wrapped.
    """
    config = config or CoDyRAConfig()
    if any(isinstance(module, CoDyRALinear) for module in model.modules()):
        raise ValueError("the model has gated branches already; merge them before a new task")
    names = find_targets(model, config)
    products = products_of(config.impl, next(model.parameters()))
    model.requires_grad_(False)
    for name in names:
        draw = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(draw[:7], "big"))
        layer = CoDyRALinear(
            model.get_submodule(name),
            config.rank,
            config.gates_start_at_one,
            config.train_gates,
            generator,
            products,
            config.regrow,
        )
        replace_module(model, name, layer)
    if products is not None:
        _share_inputs(model)
    return names


def products_of(impl: str, weight: torch.Tensor) -> Any:
    """Returns the module of products that `adapter.impl` selects for a model with this weight; None: the reference.

    Raises:
        ValueError: triton is selected but cannot run.
    """
    missing = kernels.missing(weight)
    if impl == "triton" and missing:
        raise ValueError(f"impl: triton cannot run here: {missing}; use auto")
    if impl == "reference":
        return None
    return torch_products if impl == "fused" or missing else kernels


def _share_inputs(model: nn.Module) -> None:
    """Joins the branches of each parent that read the same input."""
    for parent in list(model.modules()):
        for kinds in SHARED_INPUTS:
            children = [child for name, child in parent.named_children() if name in kinds]
            layers = [child for child in children if isinstance(child, CoDyRALinear)]
            if len(layers) > 1:
                SharedInput(parent, layers)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the model's submodule `name` by `module`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def kind_of(name: str) -> str:
    """Returns the kind of a projection, the last part of its name: q_proj of model.layers.0.self_attn.q_proj.

    In a model of several towers, with its tower: vision.q_proj of vision_model.encoder.layers.0.self_attn.q_proj.
    """
    parts = name.split(".")
    tower = TOWERS.get(parts[0])
    return f"{tower}.{parts[-1]}" if tower else parts[-1]


def describe_targets(names: Sequence[str]) -> str:
    """Returns one line about the wrapped projections: "210 projections: 30 q_proj, 30 k_proj, ..."."""
    counts = Counter(map(kind_of, names))
    return f"{len(names)} projection{'s' * (len(names) != 1)}: " + ", ".join(
        f"{count} {kind}" for kind, count in counts.items()
    )


def _text_parts(model: Any) -> list[nn.Module]:
    """Returns the decoder and the head of a transformers model that has both, else the whole model."""
    head = model.get_output_embeddings() if hasattr(model, "get_decoder") else None
    return [model] if head is None else [model.get_decoder(), head]


def _is_projection(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")


def _matches(name: str, target: str) -> bool:
    return target in (name, kind_of(name)) or name.endswith("." + target)
