"""The settings of a comparison of two models: each field is an option of scripts/judge.py."""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from codyra_llm.command import Parser
from codyra_llm.errors import UserError
from codyra_llm.options import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, check_numbers, option
from codyra_llm.text import shown

_REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class JudgeConfig:
    """The settings of a comparison: two models, the prompts that they answer, and the judge."""

    model: str = option(_REQUIRED, "the model whose wins are counted: hub id, HF folder, .gguf file")
    against: str = option(_REQUIRED, "the other one; base: what the run that saved --model started from")
    prompts: tuple[str, ...] = option(_REQUIRED, 'files, JSON list or JSONL, of {"prompt"}, with commas between')
    criteria: tuple[str, ...] = option(
        ("helpfulness",), "what each file's answers are judged by: helpfulness, harmlessness or a .txt template"
    )
    judge: str = option("none", "URL of an OpenAI-compatible endpoint, a causal LM, or none: proxies only")
    judge_model: str | None = option(None, "the endpoint's name of its model; empty: it has only one")
    api_key_variable: str = option("OPENAI_API_KEY", "environment variable with the endpoint's key", neutral=True)
    timeout: float = option(60.0, "seconds to wait for the endpoint", neutral=True, within=ABOVE_ZERO)
    retries: int = option(3, "further tries for each question to the endpoint", neutral=True, within=AT_LEAST_ZERO)
    concurrency: int = option(4, "questions to the endpoint at once", neutral=True, within=AT_LEAST_ONE)
    output_dir: str = option("runs/judge", "folder for the answers, verdicts and results", neutral=True)
    max_new_tokens: int = option(512, "tokens of an answer", within=AT_LEAST_ONE)
    chat_template: str = option(
        "run",
        "run: as in the run that saved a model, auto for others; auto: the tokenizer's chat template where it has one; "
        "none: prompts as they are; or the path of a Jinja file",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the weights")
    batch_size: int = option(16, "rows answered at once on one rank", neutral=True, within=AT_LEAST_ONE)
    deepspeed: str | None = option(None, "DeepSpeed JSON; empty: whole weights on each rank", neutral=True)
    rendezvous_seconds: float = option(
        300.0, "how long to wait at the start for the other processes", neutral=True, within=ABOVE_ZERO
    )

    @property
    def has_endpoint(self) -> bool:
        """True if the judge is given by URL."""
        return self.judge.startswith(("http://", "https://"))


def decisive(config: JudgeConfig) -> dict[str, Any]:
    """Returns the settings that results depend on."""
    return {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(JudgeConfig)
        if not each.metadata["neutral"]
    }


def settings_parser(description: str | None) -> Parser:
    """Returns a command-line parser with an option for every setting."""
    parser = Parser(description=description)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    for each in dataclasses.fields(JudgeConfig):
        required = each.default is _REQUIRED
        default = "" if required or each.default is None else f" (default: {_show(each.default)})"
        parser.add_argument(
            f"--{each.name}",
            required=required,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=each.metadata["help"].replace("%", "%%") + default,
        )
    return parser


def config_of(options: argparse.Namespace) -> JudgeConfig:
    """Returns the configuration for the options of `settings_parser`.

    Raises:
        UserError: a value is invalid.
    """
    given: dict[str, Any] = vars(options)
    given.pop("local_rank")
    for name in ("prompts", "criteria"):
        if name in given:
            given[name] = [part.strip() for part in given[name].split(",") if part.strip()]
    try:
        config = pydantic.TypeAdapter(JudgeConfig).validate_python(given)
        check_numbers(config)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"command line: --{first['loc'][0]}: {first['msg']}, found {shown(first['input'])}") from None
    except ValueError as error:
        raise UserError(f"command line: --{error}") from None
    return config


def _show(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)
