"""A run's configuration: what can be set (schema.py), and how it is read (load.py)."""

from codyra_llm.config.load import (
    DEFAULT_TASK_FILE,
    config_of,
    load_config,
    overrides_of,
    parse_command_line,
    resolve_path,
    settings_parser,
    to_yaml,
)
from codyra_llm.config.schema import (
    DataConfig,
    EvaluateConfig,
    GeneralConfig,
    MergeConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    config_fields,
    decisive,
    describe,
    differences,
    show_value,
)

__all__ = [
    "DEFAULT_TASK_FILE",
    "DataConfig",
    "EvaluateConfig",
    "GeneralConfig",
    "MergeConfig",
    "ModelConfig",
    "RunConfig",
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
    "settings_parser",
    "show_value",
    "to_yaml",
]
