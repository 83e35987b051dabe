"""Finds the domain of a run: text (causal models) or images (CLIP)."""

from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.data.stream import TaskStream
from codyra_llm.domains.base import Domain
from codyra_llm.domains.images.domain import IMAGES
from codyra_llm.domains.images.rows import ImageTask
from codyra_llm.domains.text.domain import TEXT
from codyra_llm.errors import UserError
from codyra_llm.files import read_yaml
from codyra_llm.text import shown

DOMAINS: dict[str, Domain] = {"text": TEXT, "images": IMAGES}


def find_domain(config: RunConfig, stream: TaskStream | None = None) -> Domain:
    """Returns the domain of a run's tasks, which a task file names (`domain: images`); text by default.

    Raises:
        UserError: the task file cannot be read, or names an unknown domain.
    """
    if stream is not None:
        return IMAGES if any(isinstance(task, ImageTask) for task in stream) else TEXT
    path = resolve_path(config.task_file)
    content = read_yaml(path, "task_file is a YAML file like tasks/trace/trace.yaml")
    name = content.get("domain", "text") if isinstance(content, dict) else "text"
    if not isinstance(name, str) or name not in DOMAINS:
        raise UserError(f"{path}: domain is {shown(name)}; there are {', '.join(DOMAINS)}")
    return DOMAINS[name]
