"""A run's configuration: its settings (base.py), and a section for each method that has settings of its own."""

import dataclasses
import operator
from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

from codyra_llm.config.base import BaseConfig
from codyra_llm.methods import METHODS
from codyra_llm.options import option, options, show_value

ALWAYS_SHOWN = (
    "data.max_train_examples",
    "data.max_test_examples",
    "train.num_train_epochs",
    "train.global_batch_size",
    "train.learning_rate",
    "evaluate.max_new_tokens",
)


METHOD_SECTIONS = [name for name, method in METHODS.items() if dataclasses.fields(method.Settings)]


def _check(config: BaseConfig) -> None:
    BaseConfig.__post_init__(config)
    for name in not_chosen(config):
        if getattr(config, name) != METHODS[name].Settings():
            raise ValueError(f"{name}: is set, but method is {config.method}; leave the section out")


if TYPE_CHECKING:
    RunConfig = BaseConfig
else:
    RunConfig = dataclasses.make_dataclass(
        "RunConfig",
        [
            ("method", str, option("codyra", "; ".join(f"{name}: {each.summary}" for name, each in METHODS.items()))),
            *(
                (name, METHODS[name].Settings, field(default_factory=METHODS[name].Settings))
                for name in METHOD_SECTIONS
            ),
        ],
        bases=(BaseConfig,),
        frozen=True,
        namespace={"__doc__": BaseConfig.__doc__, "__module__": __name__, "__post_init__": _check},
    )


def config_fields() -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Yields (dotted name, field) of every setting."""
    return options(RunConfig)


def not_chosen(config: BaseConfig) -> list[str]:
    """Returns the sections of methods other than the run's."""
    return [name for name in METHOD_SECTIONS if name != config.method]


def decisive(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that results depend on, by dotted name: two runs that agree on them are the same run."""
    others = tuple(f"{name}." for name in not_chosen(config))
    found = {}
    for name, config_field in config_fields():
        value, how = operator.attrgetter(name)(config), config_field.metadata
        counts = not how["neutral"] and not (how["unless_set"] and value == config_field.default)
        if counts and not name.startswith(others):
            found[name] = value
    return found


def differences(saved: RunConfig, given: RunConfig) -> list[str]:
    """Describes the differences in settings that results depend on: name, saved value, given value."""
    names = dict.fromkeys([*decisive(saved), *decisive(given)])
    pairs = [(name, *(operator.attrgetter(name)(config) for config in (saved, given))) for name in names]
    return [f"{name} {show_value(old)}, now {show_value(new)}" for name, old, new in pairs if old != new]


def describe(config: RunConfig) -> str:
    """Returns one line with the settings that decide how long a run takes, and all that differ from their defaults."""
    default = RunConfig()
    found = {
        name: value
        for name, _ in config_fields()
        if (value := operator.attrgetter(name)(config)) != operator.attrgetter(name)(default) or name in ALWAYS_SHOWN
    }
    return ", ".join(f"{name} {show_value(value)}" for name, value in found.items())
