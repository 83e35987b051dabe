"""The task file of a stream of picture domains: for each, its reader, its prompts and how much of it is learned.

It has the form of a text task file (data/stream.py) with `domain: images`; see tasks/xtail/xtail.yaml for each key.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic.dataclasses
from pydantic import Field

from codyra_llm.data.stream import read_entry, read_outline
from codyra_llm.errors import UserError
from codyra_llm.files import shipped, validated

Reader = Literal[
    "folders", "csv", "generated",
    "aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food101", "mnist", "pets", "cars", "sun397",
]  # fmt: skip
KEYS = ("domain", "name", "version", "orders", "tasks", "published")
NOT_OF_AN_ENTRY = ("name", "folder")
_Count = Annotated[int, Field(strict=True, ge=1)]
_FORBID = pydantic.ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class Generator:
    """A function that makes pictures, `FILE.py:NAME` beside the task file, and the pictures per class of each split.

    The function takes (domain, split, pictures per class, seed) and returns (uint8 [n, height, width, 3], the labels of
    these pictures, the names of all classes).
    """

    function: Annotated[str, Field(pattern=r"^\w+\.py:[A-Za-z]\w*$")]
    train: _Count
    test: _Count
    seed: Annotated[int, Field(strict=True, ge=0)] = 0


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class DomainSpec:
    """A domain of pictures, as its entry in the task file specifies it.

    Args:
        reader: what reads it: `folders`, `csv`, `generated`, or one of the benchmark's data sets by name.
        template: a class's prompt, with {} in place of the class name.
        path: its folder below the data folder, where it differs from the reader's own names.
        underscores: whether underscores in class names are kept or become spaces.
        shots: number of pictures of each class to learn from; None for all.
        steps: number of optimizer steps; takes precedence over `epochs`.
        epochs: number of epochs.
        generate: the function to call, with reader `generated` only.
        name: name of the task; no key of an entry.
        folder: folder of the task file; no key of an entry.

    Raises pydantic's ValidationError, a ValueError, if a value is invalid.
    """

    reader: Reader
    template: str
    path: str | None = None
    underscores: Literal["keep", "space"] = "keep"
    shots: _Count | None = None
    steps: _Count | None = None
    epochs: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1
    generate: Generator | None = None
    name: str = ""
    folder: Path = Path()

    def __post_init__(self) -> None:
        without = self.template.replace("{}", "", 1)
        if without == self.template or "{" in without or "}" in without or not self.template.isprintable():
            raise ValueError(f'template: "{self.template}" needs {{}} once, where the class name stands, and no other '
                             'brace: "a photo of a {}."')  # fmt: skip
        if (self.reader == "generated") != (self.generate is not None):
            raise ValueError("generate: goes with reader: generated, and with no other")

    def class_name(self, name: str) -> str:
        """Returns a class's name as it is written in the prompt."""
        return name.replace("_", " ") if self.underscores == "space" else name

    def prompt(self, name: str) -> str:
        """Returns the prompt of a class, given its name in the data."""
        return self.template.replace("{}", self.class_name(name))

    @property
    def content(self) -> dict[str, Any]:
        """The fields that determine results: all but the folder of the task file."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "folder"}


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class Published:
    """Percentages that a paper reports for each domain: one measure of a method, in one label space.

    The measure `zero_shot` is the model before the first domain; the others are Transfer, Average and Last in `order`.
    """

    method: str
    measure: Literal["zero_shot", "transfer", "average", "last"]
    variant: Literal["union", "within_task"]
    scores: dict[str, Annotated[float, Field(ge=0, le=100)]]
    source: str
    order: str = "order1"


@dataclass(frozen=True)
class ImageStreamSpec:
    """A task file of pictures, as read: its domains by name, its orders, and published scores for them."""

    label: str
    specs: dict[str, DomainSpec]
    orders: dict[str, list[str]]
    published: tuple[Published, ...] = ()

    def zero_shot(self, variant: str) -> Published | None:
        """Returns the published zero-shot scores in a label space; None if there are none."""
        rows = (row for row in self.published if (row.measure, row.variant) == ("zero_shot", variant))
        return next(rows, None)


def read_image_tasks(file: Path, allow_code: bool = False) -> ImageStreamSpec:
    """Reads a task file with `domain: images`.

    Args:
        file: path of the task file.
        allow_code: whether functions that the file names may run; those that come with the project always may.

    Raises:
        UserError: the file is missing or malformed, or names code that is not allowed.
    """
    content, orders, label = read_outline(file)
    if content.get("domain") != "images":
        raise UserError(f'{file}: is no task file of pictures; it would say "domain: images"')
    for key in content:
        if key not in KEYS:
            raise UserError(f'{file}: unknown key "{key}"; a task file of pictures has {", ".join(KEYS)}')
    specs = {name: _read_spec(file, name, entry) for name, entry in content["tasks"].items()}
    for name, spec in specs.items():
        ours = file.resolve().is_relative_to(shipped("tasks").resolve())
        if spec.generate and not (allow_code or ours):
            raise UserError(f"{file}: task {name}: {spec.generate.function} is code; read it, and set data.allow_code")
    return ImageStreamSpec(label, specs, orders, _read_published(file, content.get("published"), specs))


def _read_spec(file: Path, name: str, entry: Any) -> DomainSpec:
    spec = read_entry(DomainSpec, file, name, entry, NOT_OF_AN_ENTRY)
    return dataclasses.replace(spec, name=name, folder=file.parent)


def _read_published(file: Path, content: Any, specs: dict[str, DomainSpec]) -> tuple[Published, ...]:
    where = f"{file}: published"
    rows = validated(tuple[Published, ...], [] if content is None else content, where, "see tasks/xtail/xtail.yaml")
    for row in rows:
        for name in row.scores:
            if name not in specs:
                raise UserError(f'{where}: {row.method}: unknown task "{name}"; there are {", ".join(specs)}')
    return rows
