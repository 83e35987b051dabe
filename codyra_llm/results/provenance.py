"""The provenance of results: command, versions, configuration and model."""

import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from codyra_llm.config import RunConfig
from codyra_llm.engine.ds_config import zero_stage
from codyra_llm.engine.zero import parameter_count
from codyra_llm.results.schema import SCHEMA_VERSION, ModelFacts
from codyra_llm.text import scrub

PACKAGES = (
    "codyra_llm",
    "torch",
    "transformers",
    "deepspeed",
    "datasets",
    "bitsandbytes",
    "rapidfuzz",
    "rouge-score",
    "lm-eval",
)


def provenance(config: RunConfig, deepspeed_json: dict[str, Any], model: nn.Module, world_size: int) -> dict[str, Any]:
    """Returns the fields of `ModelProvenance`, for the constructors of its subclasses."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command(),
        "versions": versions(),
        "config": plain(config),
        "seed": config.seed,
        "world_size": world_size,
        "zero_stage": zero_stage(deepspeed_json),
        "model": ModelFacts(config.model.name_or_path, type(model).__name__, parameter_count(model)),
    }


def plain(config: Any) -> dict[str, Any]:
    """Returns a configuration as plain JSON types."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return content


def command() -> list[str]:
    """Returns the command line, without secrets (`scrub`)."""
    return [scrub(argument) for argument in sys.argv]


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of Python, of every package that results depend on, and of `others`."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
