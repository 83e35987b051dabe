"""Restrictions on suite files: their code is rejected, their templates are sandboxed, their random draws are seeded."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy
import torch
import yaml
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from codyra_llm.errors import UserError
from codyra_llm.files import read_text

# the seeds of lm_eval.simple_evaluate: PYTHON_SEED for Python; SEED for NumPy, PyTorch and few-shot samplers
PYTHON_SEED, SEED = 0, 1234
STANDARD = "tag:yaml.org,2002:"
PYTHON = f"{STANDARD}python/"


def sandbox_templates() -> None:
    """Makes the harness render templates in jinja's sandbox, where a template can access its item and nothing else."""
    before = lm_eval.utils.env
    if isinstance(before, ImmutableSandboxedEnvironment):
        return
    sandbox = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= before.filters
    lm_eval.utils.env = sandbox


def refuse_code(file: Path, allowed: bool) -> None:
    """Raises UserError if a suite's file, or one that it includes, makes the harness run code (`!function`)."""
    if allowed:
        return
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop().resolve()
        if path in seen:
            continue
        seen.add(path)
        tags, content = _read(path)
        if unknown := sorted(tag for tag in tags if not tag.startswith(STANDARD) or tag.startswith(PYTHON)):
            raise UserError(
                f"general.suites: {path}: {unknown[0]} runs code that lies beside the file; read that code, then set "
                "general.allow_code"
            )
        included = content.get("include") if isinstance(content, dict) else None
        waiting += [path.parent / name for name in _texts(included)]


def refuse_sampling(name: str, config: Any) -> None:
    """Raises UserError if a task of a suite runs code that a model writes, or samples its answers."""
    if getattr(config, "unsafe_code", False):
        raise UserError(f"general.suites: {name} runs code that the model writes, which is not done here; leave it out")
    options = getattr(config, "generation_kwargs", None) or {}
    if options.get("do_sample") or (options.get("temperature") or 0) > 0:
        raise UserError(f"general.suites: {name} draws its answers at random (do_sample); answers here are greedy")


@contextmanager
def seeded() -> Iterator[None]:
    """A context with fixed seeds for what suites draw (examples, order of choices); restores the random state after."""
    states = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    random.seed(PYTHON_SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


def _read(path: Path) -> tuple[set[str], Any]:
    """Returns (the explicit tags, the content without values of unknown tags) of a YAML file."""
    text = read_text(path)
    try:
        tags = {str(getattr(event, "tag", None) or "!") for event in yaml.parse(text, yaml.SafeLoader)}
        return tags - {"!"}, yaml.load(text, _AnyTag)
    except Exception as error:
        raise UserError(f"general.suites: {path}: not YAML: {' '.join(str(error).split())}") from None


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


class _AnyTag(yaml.SafeLoader):
    """A YAML loader that reads values with unknown tags as None."""


_AnyTag.add_multi_constructor("", lambda loader, suffix, node: None)
