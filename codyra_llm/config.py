"""A run's configuration: frozen dataclasses, read from YAML and overridden on the command line.

Every field can be given as `--section.field value` (or `--field value` at the top level). The resolved
configuration is saved in the run folder and can be run again.
"""

import argparse
import dataclasses
import difflib
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import yaml

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.command import Parser
from codyra_llm.errors import UserError
from codyra_llm.files import expand, read_yaml, shipped
from codyra_llm.methods import METHODS
from codyra_llm.options import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    DECAY,
    SHARE,
    check_numbers,
    option,
    options,
)
from codyra_llm.text import shown

ALWAYS_SHOWN = (
    "data.max_train_examples",
    "data.max_test_examples",
    "train.num_train_epochs",
    "train.global_batch_size",
    "train.learning_rate",
    "evaluate.max_new_tokens",
)


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is held."""

    name_or_path: str = option(
        "smollm2-135m-instruct", "hub id, HF folder, .gguf file, smollm2-135m-instruct or gemma3-270m"
    )
    accept_gemma_terms: bool = option(
        False, "you agree to ai.google.dev/gemma/terms, so that gemma3-270m may be fetched", neutral=True
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the frozen base; adapters are fp32")
    quantization: Literal["nf4", "int8"] | None = option(
        None, "hold the frozen projections in 4 bits (nf4) or 8 (int8), computing in dtype; empty: in dtype"
    )
    attn_implementation: str | None = option(None, "sdpa, eager or flash_attention_2; empty: transformers' choice")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time", neutral=True
    )


@dataclass(frozen=True)
class DataConfig:
    """How rows become token sequences."""

    version: str | None = option(None, "label of the data version in results; empty: the name of data_dir")
    max_prompt_length: int | None = option(
        None,
        "tokens of a prompt; the document body of a longer one is cut; empty: the task's own, else 1024",
        within=AT_LEAST_ONE,
    )
    max_answer_length: int = option(512, "tokens of a training answer, its end mark included", within=AT_LEAST_ONE)
    long_answers: Literal["error", "drop"] = option("error", "what to do with a training row whose answer is longer")
    allow_code: bool = option(
        False, "import the scorers that a task file names as module:function, which runs their code", neutral=True
    )
    packing: Literal["none", "bucket", "pack"] = option(
        "bucket",
        "how the rows of a step share forward passes: as they come (none), neighbours in length (bucket), or end to "
        "end without padding (pack); the loss is the same",
        neutral=True,
    )
    chat_template: str = option(
        "none",
        "none: prompts as they are, as in TRACE; auto: the model's chat template; or the path of a Jinja file",
    )
    max_train_examples: int | None = option(
        None, "rows of train.json to use for each task; empty: all", within=AT_LEAST_ONE
    )
    max_test_examples: int | None = option(
        None, "rows of test.json to score for each task; empty: all", within=AT_LEAST_ONE
    )


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation of one task; every task starts with a fresh optimizer."""

    global_batch_size: int = option(
        32, "rows of one optimizer step, over all ranks and accumulation steps", within=AT_LEAST_ONE
    )
    per_device_train_batch_size: int = option(
        1, "rows of one forward pass on one rank (the micro batch)", neutral=True, within=AT_LEAST_ONE
    )
    learning_rate: float = option(5e-4, "peak learning rate of the adapters", within=ABOVE_ZERO)
    warmup_steps: int = option(0, "linear warm-up steps of each task, before the cosine", within=AT_LEAST_ZERO)
    num_train_epochs: float | None = option(
        None, "passes over each task's rows; empty: the task file's own", within=ABOVE_ZERO
    )
    adam_beta1: float = option(0.9, "AdamW's beta1", within=DECAY)
    adam_beta2: float = option(0.9999, "AdamW's beta2", within=DECAY)
    adam_bits: Literal[32, 8] = option(32, "bits of AdamW's moments of A and B; those of the gates have 32")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", within=ABOVE_ZERO)
    weight_decay: float = option(0.0, "AdamW's weight decay", within=AT_LEAST_ZERO)
    max_grad_norm: float = option(1.0, "gradient norm to clip to", within=ABOVE_ZERO)
    checkpoint_every: int = option(
        25,
        "optimizer steps between checkpoints; each phase of a task ends with one as well",
        neutral=True,
        within=AT_LEAST_ONE,
    )


@dataclass(frozen=True)
class MergeConfig:
    """How a finished task enters the weights."""

    scale: float = option(1.0, "share of the update that is merged; below 1 is a control, not the method", within=SHARE)
    mode: Literal["exact", "in_place"] = option(
        "exact",
        "exact: after each task, weights are the original ones plus all updates, rounded once; in_place: each task's "
        "update is added to the weights as they are and rounded again, which needs no original to read from",
    )
    save_quantized: bool = option(
        True,
        "of a quantized base: save the model that was measured, quantized (true), or the original weights plus all "
        "updates in model.dtype (false)",
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is scored, and how answers are generated."""

    tasks: Literal["all", "seen", "last"] = option(
        "all", "after each task score all tasks, those seen so far, or (last) all of them once, at the end"
    )
    batch_size: int = option(16, "rows generated at once on one rank", neutral=True, within=AT_LEAST_ONE)
    max_new_tokens: int | None = option(None, "cap on the task file's own; empty: no cap", within=AT_LEAST_ONE)
    gather: Literal["auto", "always", "never"] = option(
        "auto",
        "ZeRO stage 3: hold all weights on every rank while scoring (always), or each module's only while it runs "
        "(never: slow); auto: always where they fit",
        neutral=True,
    )
    parity: bool = option(False, "as the published runs: 512 new tokens for every task, no stop strings")
    scorer_variant: Literal["trace_strict", "treelora_prefix", "moram", "lenient"] = option(
        "lenient", "the variant that fills the matrix; all are computed and kept"
    )


@dataclass(frozen=True)
class GeneralConfig:
    """What general ability is measured on, beside the tasks that are learned."""

    suites: tuple[str, ...] = option(
        (), "mmlu, gsm8k, bbh, tydiqa, boolq, piqa, any task of lm-eval, or a YAML file in its format; empty: none"
    )
    data_dir: str | None = option(None, "folder with the suites' data; empty: from the hub")
    allow_code: bool = option(
        False, "run the code that a suite's YAML file names (!function); read it first: it can do all that you can"
    )
    limit: int | None = option(None, "items of each suite, the same every time; empty: all", within=AT_LEAST_ONE)
    after: tuple[str, ...] = option((), "tasks after which it is measured, beside the base model; empty: each")


@dataclass(frozen=True)
class _RunConfig:
    """One continual fine-tuning run; beside these, a section for each method that has settings of its own."""

    output_dir: str = option("runs/run", "the run folder", neutral=True)
    data_dir: str = option("tasks/trace/sample", "folder with <task>/{train,eval,test}.json")
    task_file: str = option("tasks/trace/trace.yaml", "the stream's tasks as data: scorers, lengths, epochs, orders")
    order: str | tuple[str, ...] = option("order1", "an order of the task file by name, or a list of tasks")
    extend: str | None = option(
        None, "folder `ledger` of a finished run: learn new tasks on top of it; model.name_or_path is the base it names"
    )
    method: str = option("codyra", "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()))
    seed: int = option(1234, "seed of the adapters' draws and of the order of rows")
    deepspeed: str | None = option(
        None, "DeepSpeed JSON, for example ds_configs/zero2.json; empty: ZeRO stage 0", neutral=True
    )
    resume: Literal["auto", "never"] = option(
        "auto", "auto: go on with what the run folder holds of the same run; never: start over", neutral=True
    )
    rendezvous_seconds: float = option(
        300.0, "how long a process waits at the start for the others of the run", neutral=True, within=ABOVE_ZERO
    )
    collective_seconds: float = option(
        1800.0,
        "how long a process waits for the others in one collective operation before it ends",
        neutral=True,
        within=ABOVE_ZERO,
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: CoDyRAConfig = field(default_factory=CoDyRAConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    general: GeneralConfig = field(default_factory=GeneralConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.method not in METHODS:
            raise ValueError(f"method is {shown(self.method)}; there are {', '.join(METHODS)}")
        for name in _not_chosen(self):
            if getattr(self, name) != METHODS[name].Settings():
                raise ValueError(f"{name}: is set, but method is {self.method}; leave the section out")
        if self.model.quantization and self.merge.mode == "in_place":
            raise ValueError("merge.mode in_place would lose most of an update to a quantized weight; use exact")


METHOD_SECTIONS = [name for name, method in METHODS.items() if dataclasses.fields(method.Settings)]
if TYPE_CHECKING:
    RunConfig = _RunConfig
else:
    RunConfig = dataclasses.make_dataclass(
        "RunConfig",
        [(name, METHODS[name].Settings, field(default_factory=METHODS[name].Settings)) for name in METHOD_SECTIONS],
        bases=(_RunConfig,),
        frozen=True,
        namespace={"__doc__": _RunConfig.__doc__, "__module__": __name__},
    )

DEFAULT_TASK_FILE = shipped(RunConfig.task_file)


def load_config(path: Path | str | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A checked configuration from a YAML file and overrides by dotted name ({"adapter.rank": 8}).

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type or cannot work.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = dict(_flatten(_read_yaml(resolve_path(str(path))), str(path)))
    known = {name: config_field.type for name, config_field in config_fields()}
    parts = {part for name in known for part in name.split(".")}  # a union's alternatives are in `loc` as well
    for origin, names in ((str(path), values), ("command line", overrides or {})):
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean "{close[0]}"?' if close else "see --help for all keys"
                raise UserError(f'{origin}: unknown key "{name[:100]}"; {hint}')
            if isinstance(names[name], bool) and "bool" not in str(known[name]):  # pydantic would take it as a number
                raise UserError(f"{origin}: {name} is {str(names[name]).lower()}; it is not a yes-or-no setting")
    values.update(overrides or {})
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(_nest(values))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part in parts)
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f", found {shown(first['input'])}"
        if place:  # a section checks its own settings, and names them without itself
            place += "." if f"{place}.{message.split(' ')[0]}" in known else ": "
        raise UserError(f"{path or 'configuration'}: {place}{message}{found}") from None


def parse_command_line(arguments: Sequence[str], description: str) -> RunConfig:
    """The configuration that a command line means: `--config FILE`, then every field as an override.

    Without a file, what is not given has its default.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", help="YAML file, some are in configs/; what it leaves out has the default below")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    for name, config_field in config_fields():
        default = "" if config_field.default is None else f" (default: {_show(config_field.default)})"
        help_text = config_field.metadata["help"].replace("%", "%%") + default
        parser.add_argument(f"--{name}", help=help_text, metavar="VALUE", default=argparse.SUPPRESS)
    parser.add_argument(
        "--accept-gemma-terms",
        dest="model.accept_gemma_terms",
        action="store_const",
        const="true",
        default=argparse.SUPPRESS,
        help="the same as --model.accept_gemma_terms true",
    )
    given = vars(parser.parse_args(arguments))
    path = given.pop("config")
    given.pop("local_rank")
    return load_config(path, {name: _parse_value(name, text) for name, text in given.items()})


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML that `load_config` reads back; sections of methods that are not chosen are left out."""
    content = _plain(dataclasses.asdict(config))
    for name in _not_chosen(config):
        del content[name]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def resolve_path(path: str) -> Path:
    """A path as given or, where that does not exist, that of the files which the project ships.

    Raises:
        UserError: it begins with a `~name` that has no home folder.
    """
    given, known = expand(path), shipped(path)
    return known if not os.path.exists(given) and os.path.exists(known) else given


def config_fields() -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """(dotted name, field) of every setting."""
    return options(RunConfig)


def _not_chosen(config: _RunConfig) -> list[str]:
    """The sections of methods other than the run's."""
    return [name for name in METHOD_SECTIONS if name != config.method]


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that results depend on, by dotted name: two runs that agree on them are the same run."""
    others = tuple(f"{name}." for name in _not_chosen(config))
    names = (
        name
        for name, config_field in config_fields()
        if not config_field.metadata["neutral"] and not name.startswith(others)
    )
    return {name: operator.attrgetter(name)(config) for name in names}


def describe(config: RunConfig) -> str:
    """The settings that decide how long a run takes, and all that are not as by default, as one line."""
    default = RunConfig()
    found = {
        name: value
        for name, _ in config_fields()
        if (value := operator.attrgetter(name)(config)) != operator.attrgetter(name)(default) or name in ALWAYS_SHOWN
    }
    return ", ".join(f"{name} {_show(value)}" for name, value in found.items())


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "--config takes a YAML file, configs/ has some")
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, found {type(content).__name__}")
    return content or {}


def _flatten(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    sections = {name.split(".")[0] for name, _ in config_fields() if "." in name}
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
    """Command-line text as the YAML value it spells; `a,b` is a list where the field is one."""
    field_type = str(dict(config_fields())[name].type)
    if "tuple" in field_type and "," in text and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if "tuple" in field_type and isinstance(value, str) and "str |" not in field_type:
        return [value]
    is_text = field_type == "<class 'str'>" or "str" in field_type.split(" | ")
    return text if is_text and not isinstance(value, list | type(None)) else value


def _show(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else "empty" if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
