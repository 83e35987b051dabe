"""Suites of general ability: lm-evaluation-harness tasks, with a fixed subset of their items."""

import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from codyra_llm.config import GeneralConfig
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.subset import in_turns
from codyra_llm.evaluation.general.trust import SEED, refuse_code, refuse_sampling, sandbox_templates, seeded
from codyra_llm.files import expand, shipped

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it logs a message for every task file

SHIPPED = shipped("tasks/general")
TRACE = ("mmlu", "gsm8k", "bbh", "tydiqa", "boolq", "piqa")  # the suites of TRACE, together named `general`


@dataclass(frozen=True)
class Suite:
    """One suite: the harness's tasks in it, and the items of them that are asked.

    Attributes:
        name: as the configuration names it.
        tasks: name -> task.
        items: task -> numbers of its asked items, in ascending order.
        digest: SHA-256 of its settings, the asked items and the few-shot examples.
    """

    name: str
    tasks: dict[str, Task]
    items: dict[str, list[int]]
    digest: str = ""

    @property
    def label(self) -> str:
        """The name in a form that can be part of a file name."""
        return re.sub(r"[^\w.-]", "-", Path(self.name).stem if _is_file(self.name) else self.name)


def load_suites(config: GeneralConfig) -> list[Suite]:
    """Loads the suites that a configuration names, with their data.

    A name is one of tasks/general, `general` for the six suites of TRACE, a YAML file in the harness's task format, or
    any task or group of the harness.

    Raises:
        UserError: a suite is unknown or named twice, its file is malformed, or its data is not available.
    """
    if not config.suites:
        return []
    if config.data_dir and not expand(config.data_dir).is_dir():
        raise UserError(f"general.data_dir {config.data_dir}: no such folder")
    metadata = {"data_dir": str(expand(config.data_dir)) if config.data_dir else None}
    names = [each for name in config.suites for each in (TRACE if name == "general" else (name,))]
    sandbox_templates()
    suites = [_load(name, metadata, config) for name in names]
    for label, count in Counter(suite.label for suite in suites).items():
        if count > 1:
            raise UserError(f"general.suites: {label} is listed {count} times; give each suite a name of its own")
    return suites


def line_of(error: BaseException) -> str:
    """Returns the first line of an error: its type and message."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _load(name: str, metadata: dict[str, Any], config: GeneralConfig) -> Suite:
    path, is_file, shipped = expand(name), _is_file(name), (SHIPPED / f"{name}.yaml").is_file()
    if is_file and not path.is_file():
        raise UserError(f"general.suites: {name}: no such file")
    if is_file:
        refuse_code(path, config.allow_code)
    source = str(path) if is_file else f"general_{name}" if shipped else name
    # searching the harness's thousands of task files takes seconds
    manager = TaskManager(include_path=str(SHIPPED), include_defaults=not (is_file or shipped), metadata=metadata)
    if not is_file and source not in manager.all_tasks:
        ours = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise UserError(f'general.suites: unknown suite "{name}"; there are {ours}, and the tasks of lm-eval')
    try:
        with seeded():
            tasks: dict[str, Task] = manager.load([source])["tasks"]
            for task_name, task in tasks.items():
                refuse_sampling(task_name, task.config)
                task.set_fewshot_seed(SEED)
            items = _items(tasks, config.limit)
            return Suite(name, tasks, items, _digest(tasks, items))
    except UserError:
        raise
    except yaml.YAMLError as error:
        raise UserError(f"general.suites: {name}: not YAML: {error}".replace("\n", " ")) from None
    except (Exception, SystemExit) as error:  # any mistake in a task file, or a hub that cannot be reached
        hint = "it is to be a task in lm-eval's format" if is_file else "general.data_dir names a folder with its data"
        raise UserError(f"general.suites: {name} cannot be loaded ({line_of(error)}); {hint}") from None


def _digest(tasks: dict[str, Task], items: dict[str, list[int]]) -> str:
    """Returns the SHA-256 of a suite's settings, its asked items and their few-shot examples."""
    digest = hashlib.sha256()
    for name, numbers in items.items():
        task: Any = tasks[name]
        shots = list(task.fewshot_docs()) if task.config.num_fewshot else []
        documents = [task.eval_docs[number] for number in numbers]
        settings = {key: value for key, value in vars(task.config).items() if key != "metadata"}
        content = [name, settings, documents, shots]
        digest.update(json.dumps(content, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return digest.hexdigest()


def _items(tasks: dict[str, Task], limit: int | None) -> dict[str, list[int]]:
    """Returns the chosen items of each task: all, or `limit` in total, spread evenly over tasks and their strata."""
    strata: dict[tuple[str, str], list[int]] = {}
    for name, task in tasks.items():
        for number, item in enumerate(task.eval_docs):
            stratum = str(item.get("stratum", "")) if isinstance(item, dict) else ""
            strata.setdefault((name, stratum), []).append(number)
    chosen: dict[str, list[int]] = {name: [] for name in tasks}
    for (task, _), number in in_turns(strata, limit):
        chosen[task].append(number)
    return {name: sorted(numbers) for name, numbers in chosen.items() if numbers}
