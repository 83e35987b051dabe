"""Reads a run's configuration from YAML and the command line, and writes it as YAML.

Every field can be given as `--section.field value` (or `--field value` at the top level). The resolved
configuration is saved in the run folder and can be run again.

Settings that are not a method's own are checked first, since the methods import torch, which takes seconds.
"""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pydantic
import yaml

from codyra_llm.command import Parser
from codyra_llm.config.base import BaseConfig, method_names
from codyra_llm.errors import UserError
from codyra_llm.files import expand, read_yaml, shipped, type_adapter
from codyra_llm.options import options, show_value
from codyra_llm.text import shown

if TYPE_CHECKING:
    from codyra_llm.config.schema import RunConfig

DEFAULT_TASK_FILE = shipped(BaseConfig.task_file)


def load_config(
    path: Path | str | None = None, overrides: dict[str, Any] | None = None, content: dict[str, Any] | None = None
) -> "RunConfig":
    """Returns a checked configuration from a YAML file and overrides by dotted name ({"adapter.rank": 8}).

    Args:
        path: the YAML file, or the name of one in configs/.
        overrides: values that replace those of the file.
        content: content of the file, if it was read before.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type or is invalid.
    """
    values: dict[str, Any] = {}
    if content is None and path is not None:
        content = read_config(find_config(str(path)))
        content.pop("compare", None)  # the section that `codyra compare` reads (config/grid.py)
    if content is not None:
        values = dict(_flatten(content, str(path)))
    given = [(str(path), values), ("command line", overrides or {})]
    of_run = [(origin, {name: each[name] for name in each if not _is_of_method(name)}) for origin, each in given]
    _checked(BaseConfig, of_run, path)
    from codyra_llm.config.schema import RunConfig

    return _checked(RunConfig, given, path)


def _checked(of: type[Any], given: list[tuple[str, dict[str, Any]]], path: Path | str | None) -> Any:
    """Returns a dataclass of settings, from (origin, values by dotted name); later values replace earlier ones."""
    known = {name: config_field.type for name, config_field in options(of)}
    parts = {part for name in known for part in name.split(".")}  # `loc` also contains a union's alternatives
    values: dict[str, Any] = {}
    for origin, names in given:
        values |= names
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean "{close[0]}"?' if close else "see --help for all keys"
                raise UserError(f'{origin}: unknown key "{name[:100]}"; {hint}')
            if isinstance(names[name], bool) and "bool" not in str(known[name]):  # pydantic accepts it as a number
                raise UserError(f"{origin}: {name} is {str(names[name]).lower()}; it is not a yes-or-no setting")
    try:
        return type_adapter(of).validate_python(_nest(values))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part in parts)
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f", found {shown(first['input'])}"
        if place:  # a section checks its own settings, and its messages lack the name of the section
            place += "." if f"{place}.{message.split(' ')[0]}" in known else ": "
        raise UserError(f"{path or 'configuration'}: {place}{message}{found}") from None


def parse_command_line(arguments: Sequence[str], description: str) -> "RunConfig":
    """Returns the configuration of a command line: `--config FILE`, then every field as an override.

    Without a file, settings that are not given have their defaults.
    """
    return config_of(vars(SettingsParser(description).parse_args(arguments)))


class SettingsParser(Parser):
    """A parser of `--config FILE` and of every setting as an option, in a group for each section.

    Methods' own settings become options only when one is given or for --help, since they require the import of torch.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, usage="%(prog)s [--config FILE] [--SECTION.FIELD VALUE ...]")
        self.add_argument(
            "--config", help="YAML file, or the name of one in configs/; what it leaves out has the default below"
        )
        self.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
        self._groups: dict[str, Any] = {}
        for name, setting in options(BaseConfig):
            self._add(name, setting)
        self.add_argument(
            "--accept-gemma-terms",
            dest="model.accept_gemma_terms",
            action="store_const",
            const="true",
            default=argparse.SUPPRESS,
            help="the same as --model.accept_gemma_terms true",
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments, with the options of methods if one is given."""
        _, unknown = self.parse_known_args(args)
        if any(_is_of_method(each.removeprefix("--").partition("=")[0]) for each in unknown):
            self.add_methods()
        return super().parse_args(args, namespace)

    def format_help(self) -> str:
        """Returns the help text, with the options of methods."""
        self.add_methods()
        return super().format_help()

    def add_methods(self) -> None:
        """Adds the methods' own settings, once, and the descriptions of the methods."""
        from codyra_llm.config.schema import config_fields

        for name, setting in config_fields():
            if f"--{name}" not in self._option_string_actions:
                self._add(name, setting)
            elif name == "method":
                self._option_string_actions["--method"].help = _help(setting)

    def _add(self, name: str, setting: "dataclasses.Field[Any]") -> None:
        section = name.rpartition(".")[0]
        if section not in self._groups:
            title = f"settings of `{section}`" if section else "settings of the run"
            self._groups[section] = self.add_argument_group(title)
        how: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.type is bool else {}
        self._groups[section].add_argument(
            f"--{name}", help=_help(setting), metavar=_kind(setting.type), default=argparse.SUPPRESS, **how
        )


def find_config(path: str) -> Path:
    """Returns the file of a configuration, given by its path or by its name in configs/."""
    if not re.fullmatch(r"[\w-]+", path) or os.path.exists(path):
        return resolve_path(path)
    named = resolve_path(f"configs/{path}.yaml")
    if not named.is_file():
        there = sorted(file.stem for file in shipped("configs").glob("*.yaml"))
        close = difflib.get_close_matches(path, there, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(there)}"
        raise UserError(f"--config {path}: no such file, and no configuration of that name; {hint}")
    return named


def config_of(options: dict[str, Any]) -> "RunConfig":
    """Returns the configuration of the options of `SettingsParser`; see `load_config`."""
    return load_config(options["config"], overrides_of(options))


def overrides_of(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings among the options of `SettingsParser`, as YAML values by dotted name."""
    given = {name: text for name, text in options.items() if name not in ("config", "local_rank")}
    return {name: _parse_value(name, text) for name, text in given.items()}


def _is_of_method(name: str) -> bool:
    """True if a setting, by its dotted name, is in a section of a method."""
    section, dot, _ = name.partition(".")
    return bool(dot) and section in method_names()


def _setting(name: str) -> "dataclasses.Field[Any]":
    found = dict(options(BaseConfig)).get(name)
    if found:
        return found
    from codyra_llm.config.schema import config_fields

    return dict(config_fields())[name]


def _help(setting: "dataclasses.Field[Any]") -> str:
    default = "" if setting.default is None else f" (default: {show_value(setting.default)})"
    return str(setting.metadata["help"]).replace("%", "%%") + default


def _kind(field_type: Any) -> str:
    """Returns the values of a setting for --help: their kind, or the possible values."""
    choices = [str(value) for part in (field_type, *get_args(field_type)) for value in get_args(part)]
    if choices and not any("<class" in choice or "NoneType" in choice for choice in choices):
        return "{" + ",".join(choices) + "}"
    names = {"bool": "true|false", "int": "N", "float": "NUMBER"}
    return next((shown_as for name, shown_as in names.items() if name in str(field_type)), "VALUE")


def to_yaml(config: "RunConfig") -> str:
    """Returns the configuration as YAML for `load_config`, without the sections of methods that are not chosen."""
    from codyra_llm.config.schema import not_chosen

    content = _plain(dataclasses.asdict(config))
    for name in not_chosen(config):
        del content[name]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=2**16)  # a path stays on its line


def resolve_path(path: str) -> Path:
    """Returns a path as given or, if it does not exist, that of a file that the project ships.

    Raises:
        UserError: it begins with a `~name` that has no home folder.
    """
    given, known = expand(path), shipped(path)
    return known if not os.path.exists(given) and os.path.exists(known) else given


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a configuration's file, unchecked.

    Raises:
        UserError: it is missing, or not a mapping.
    """
    content = read_yaml(path, "--config takes a YAML file, configs/ has some")
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, found {type(content).__name__}")
    return content or {}


def _flatten(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    sections = {name.split(".")[0] for name, _ in options(BaseConfig) if "." in name} | {*method_names()}
    for key, value in values.items():
        if key not in sections:
            yield str(key), value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        elif value is not None:
            raise UserError(f"{path}: {key} is a section with keys of its own, found {shown(value)}")


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def _parse_value(name: str, text: str) -> Any:
    """Parses command-line text as a YAML value; `a,b` is a list if the field is one."""
    field_type = str(_setting(name).type)
    if "tuple" in field_type and "," in text and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if "tuple" in field_type and value is None:
        return []
    if "tuple" in field_type and isinstance(value, str) and "str |" not in field_type:
        return [value]
    if field_type.startswith("str | float") and isinstance(value, int | float):
        return value
    is_text = field_type == "<class 'str'>" or "str" in field_type.split(" | ")
    return text if is_text and not isinstance(value, list | type(None)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
