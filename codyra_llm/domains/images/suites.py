"""Zero-shot retention: data sets that are never learned, scored before the stream and after tasks (general ability)."""

import hashlib
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.data.stream import TaskSpec
from codyra_llm.domains.facts import UNION
from codyra_llm.domains.images.answers import score_pictures
from codyra_llm.domains.images.prompts import space_of
from codyra_llm.domains.images.readers import read_domain
from codyra_llm.domains.images.rows import ImageTask, examples_of
from codyra_llm.domains.images.stream import image_task
from codyra_llm.domains.images.tasks import read_image_tasks
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.evaluation.general.subset import SUBSET_SEED, in_turns
from codyra_llm.example import Example
from codyra_llm.files import expand
from codyra_llm.generation.generate import Ask
from codyra_llm.models.source import Source


@dataclass(frozen=True)
class ImageSuite:
    """A data set whose pictures are classified among its own classes (`domains.base.Suite`).

    Attributes:
        task: the data set as a task.
        numbers: indices of the test pictures that are scored.
        examples: these pictures as examples.
    """

    task: ImageTask
    numbers: Sequence[int]
    examples: Sequence[Example]

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    @property
    def label(self) -> str:
        """The name of the task, which is valid in file names."""
        return self.task.name

    @property
    def items(self) -> dict[str, list[int]]:
        """The indices of the test pictures that are scored, by the name of the task."""
        return {self.name: list(self.numbers)}

    @property
    def digest(self) -> str:
        """A hash of pictures and prompts."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.to_bytes())
        return digest.hexdigest()


def load_suites(config: RunConfig, source: Source, learned: Sequence[str]) -> list[ImageSuite]:
    """Loads the tasks of the configuration's task file that `general.suites` names.

    Raises:
        UserError: one is unknown, named twice or among the learned ones, or its data cannot be read.
    """
    general = config.general
    if not general.suites:
        return []
    file = resolve_path(config.task_file)
    known = read_image_tasks(file, config.data.allow_code)
    for name, count in Counter(general.suites).items():
        if name not in known.specs:
            raise UserError(f"general.suites: {file} has no task {name!r}; it has {', '.join(known.specs)}")
        if name in learned:
            raise UserError(f"general.suites: {name} is learned by the run itself; name tasks that order does not have")
        if count > 1:
            raise UserError(f"general.suites: {name} is listed {count} times; name each once")
    folder = expand(general.data_dir or config.data_dir)
    suites = []
    for name in general.suites:
        task = image_task(read_domain(known.specs[name], folder), TaskSpec("accuracy"), 1, config.seed)
        every = examples_of(task, "test", space_of([task], source))
        numbers = _chosen([picture.label for picture in task.pictures["test"]], general.limit, name)
        suites.append(ImageSuite(task, numbers, [every[number] for number in numbers]))
    return suites


def _chosen(labels: Sequence[int], limit: int | None, name: str) -> list[int]:
    """Returns the indices of at most `limit` pictures, spread as evenly as possible over the classes."""
    of_classes: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        of_classes.setdefault(label, []).append(number)
    return sorted(number for _, number in in_turns(of_classes, limit, f"{SUBSET_SEED}/{name}"))


def score_suite(suite: ImageSuite, ask: Ask) -> tuple[SuiteScore, list[dict[str, Any]]]:
    """Computes a model's zero-shot accuracy among the suite's own classes; returns it with all answers."""
    task = suite.task
    shown = ImageTask(task.name, task.spec, [], [task.test[number] for number in suite.numbers])
    (found,) = score_pictures([shown], [suite.examples], ask)
    values = [row["scores"][UNION] for row in found.rows]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    rows = [
        {"task": task.name, "item": number, **{key: value for key, value in row.items() if key != "scores"},
         "score": row["scores"][UNION]}
        for number, row in zip(suite.numbers, found.rows, strict=True)
    ]  # fmt: skip
    return SuiteScore(found.totals[UNION], error, "percent", True, "accuracy", len(values)), rows
