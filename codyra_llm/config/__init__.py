"""A run's configuration: its settings (base.py, schema.py), and how it is read (load.py)."""

from typing import TYPE_CHECKING

from codyra_llm.config.base import (
    DataConfig,
    EvaluateConfig,
    GeneralConfig,
    MergeConfig,
    ModelConfig,
    RetentionConfig,
    TrainConfig,
)
from codyra_llm.config.load import (
    DEFAULT_TASK_FILE,
    SettingsParser,
    config_of,
    load_config,
    overrides_of,
    parse_command_line,
    resolve_path,
    to_yaml,
)
from codyra_llm.lazy import at_first_use

if TYPE_CHECKING:
    from codyra_llm.config.schema import RunConfig, config_fields, decisive, describe, differences

__all__ = [
    "DEFAULT_TASK_FILE",
    "DataConfig",
    "EvaluateConfig",
    "GeneralConfig",
    "MergeConfig",
    "ModelConfig",
    "RetentionConfig",
    "RunConfig",
    "SettingsParser",
    "TrainConfig",
    "config_fields",
    "config_of",
    "decisive",
    "describe",
    "differences",
    "load_config",
    "overrides_of",
    "parse_command_line",
    "resolve_path",
    "to_yaml",
]
OF_METHODS = ("RunConfig", "config_fields", "decisive", "describe", "differences")  # their import loads torch
__getattr__ = at_first_use(__name__, dict.fromkeys(OF_METHODS, "codyra_llm.config.schema"))
