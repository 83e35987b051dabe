"""A stream of tasks: the task file, which specifies the tasks, joined with a data folder, which has their rows."""

import dataclasses
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic.dataclasses
from pydantic import Field

from codyra_llm.data import raw_text
from codyra_llm.data.chat import Learn
from codyra_llm.data.rows import KEYS, Row
from codyra_llm.data.tables import Split, check_sources, read_split, text_rows, to_rows
from codyra_llm.errors import UserError
from codyra_llm.files import expand, plain_name, read_yaml, type_adapter
from codyra_llm.text import shown

Spec = TypeVar("Spec")
_Count = Annotated[int, Field(strict=True, ge=1)]
SPLITS: tuple[Split, ...] = ("train", "test")
IN_TOKENS = ("files", "columns", "dataset", "chat_template", "learn")  # affect nothing but the tokens of a task
_FORBID = pydantic.ConfigDict(extra="forbid")
LONGEST_LABEL = 200  # characters of a stream's name, or of its version


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class Body:
    """The only part of a prompt that may be truncated: between `start` and `end` (empty: the prompt's own ends).

    `keep` specifies which side of the body is kept.
    """

    start: str = ""
    end: str = ""
    keep: Literal["head", "tail"] = "head"


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class DatasetSource:
    """A dataset that the datasets library loads: its path (hub or folder), and other arguments of `load_dataset`.

    `split` specifies which of its splits is train and which is test ({train: "train[:90%]", test: validation}).
    """

    path: str
    name: str | None = None
    split: dict[Split, str] = Field(default_factory=dict)
    data_files: dict[str, str | list[str]] | None = None
    revision: str | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_FORBID)
class TaskSpec:
    """A task, as its entry in the task file specifies it; see tasks/trace/trace.yaml for the meaning of each key.

    Raises pydantic's ValidationError, a ValueError, if a value is invalid.
    """

    scorer: str | Annotated[tuple[str, ...], Field(min_length=1)]
    max_new_tokens: _Count = 128
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    epochs: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1
    steps: _Count | None = None
    body: Body | None = None
    max_prompt_length: _Count = 1024
    files: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str] | None = None
    dataset: DatasetSource | None = None
    chat_template: str | None = None
    learn: Learn = "all"

    def __post_init__(self) -> None:
        check_sources(self.files, self.columns, (*SPLITS, "eval"), ("text",) if self.is_text else KEYS)
        if self.files and self.dataset:
            raise ValueError("files and dataset: give one of them")
        if self.is_text and len(self.scorers) > 1:
            raise ValueError(f"scorer: {raw_text.SCORER} stands alone")

    @property
    def scorers(self) -> tuple[str, ...]:
        """The names of the scorers; the first is the headline scorer, whose scores are in the matrix."""
        return (self.scorer,) if isinstance(self.scorer, str) else self.scorer

    @property
    def is_text(self) -> bool:
        """True if the rows are raw text, for continued pretraining."""
        return raw_text.SCORER in self.scorers

    @property
    def content(self) -> dict[str, Any]:
        """The fields that determine results, without those that determine tokens, which are compared directly."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in IN_TOKENS}
        if self.steps is None:  # absent, as in runs that are older than this field
            del found["steps"]
        return found


@dataclass(frozen=True)
class Task:
    """One task of a stream: its name, specification and rows; each split's hash, row numbers and file.

    Attributes:
        name: name of the task.
        spec: its entry in the task file.
        train: training rows.
        test: test rows.
        validation: validation rows.
        files: SHA-256 of each split's data.
        row_numbers: number of each row in its file, by split.
        places: the file or dataset of each split.
    """

    name: str
    spec: TaskSpec
    train: list[Row]
    test: list[Row]
    validation: list[Row] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    row_numbers: dict[str, list[int]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def keys(self, split: Split) -> list[str]:
        """Returns the text by which each row of train or test is compared: its prompt or, of raw text, the text."""
        return [str(row["prompt"] or row["answer"]) for row in (self.train if split == "train" else self.test)]

    def parted(self, left: Sequence[int], validation: Sequence[int]) -> "Task":
        """Returns the task with training rows split, by index, into rows to learn from and rows to validate on."""
        numbers = self.row_numbers.get("train") or range(1, len(self.train) + 1)
        return dataclasses.replace(
            self,
            train=[self.train[number] for number in left],
            validation=[self.train[number] for number in validation],
            row_numbers={
                **self.row_numbers,
                "train": [numbers[number] for number in left],
                "eval": [numbers[number] for number in validation],
            },
            places={**self.places, **({"eval": self.places["train"]} if "train" in self.places else {})},
        )

    def tested_on_validation(self) -> "Task":
        """Returns the task with its validation rows as test rows."""
        numbers = {"train": self.row_numbers["train"], "test": self.row_numbers["eval"]}
        return dataclasses.replace(self, test=self.validation, validation=[], row_numbers=numbers)


@dataclass(frozen=True)
class TaskStream:
    """Tasks in the order in which they are learned; `notes` are remarks on their files, one line each.

    Iterating yields the tasks. `TaskStream.load` reads a stream from a task file and a data folder, `from_rows` makes
    one from rows in memory.
    """

    tasks: tuple[Task, ...]
    name: str = "custom"
    version: str = ""
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def names(self) -> list[str]:
        """The tasks' names, in order."""
        return [task.name for task in self.tasks]

    @classmethod
    def load(
        cls,
        task_file: Path | str,
        data_dir: Path | str,
        order: str | Sequence[str] = "order1",
        max_train_examples: int | None = None,
        max_test_examples: int | None = None,
        splits: Sequence[Split] = SPLITS,
    ) -> "TaskStream":
        """Reads the tasks of an order and their rows.

        A limit selects a fixed random subset of a split: the same rows for every method and seed.

        Args:
            task_file: path of the task file.
            data_dir: the data folder.
            order: see `resolve_order`.
            max_train_examples: the most training rows of a task.
            max_test_examples: the most test rows of a task.
            splits: the splits to read, of train, test and eval.

        Raises:
            UserError: a file is missing or malformed, a task or order is unknown, or a task is named twice.
        """
        specs, orders, label = read_task_file(Path(task_file))
        names = resolve_order(order, orders, specs, str(task_file))
        folder = expand(data_dir)
        if not os.path.isdir(folder) and not all(specs[name].dataset for name in names):
            raise UserError(f"{folder}: no such data folder; data_dir holds <task>/train.json and <task>/test.json")
        tasks: list[Task] = []
        notes: list[str] = []
        for name in names:
            read = {split: read_split(specs[name], folder / name, split, notes.append) for split in splits}
            limits: dict[Split, int | None] = {"train": max_train_examples, "test": max_test_examples}
            rows: dict[Split, list[Row]] = {"train": [], "test": [], "eval": []}
            numbers: dict[str, list[int]] = {}
            for split, (found, _, _) in read.items():
                numbers[split] = _subset(len(found), limits.get(split), f"{name}/{split}")
                rows[split] = [found[number - 1] for number in numbers[split]]
            hashes: dict[str, str] = {split: digest for split, (_, digest, _) in read.items()}
            places: dict[str, str] = {split: place for split, (_, _, place) in read.items()}
            tasks.append(Task(name, specs[name], rows["train"], rows["test"], rows["eval"], hashes, numbers, places))
        return cls(tuple(tasks), label, folder.resolve().name, tuple(notes))

    @classmethod
    def from_rows(cls, rows: dict[str, dict[str, list[Row]]], specs: dict[str, TaskSpec] | None = None) -> "TaskStream":
        """Makes a stream of {task: {"train": rows, "test": rows}}, also "eval"; without a spec, the scorer is accuracy.

        Raises:
            UserError: a task lacks a split, or a row is malformed.
        """
        tasks = []
        if not isinstance(rows, dict) or not all(isinstance(splits, dict) for splits in rows.values()):
            raise UserError(f"a stream is made of {{task: {{train: rows, test: rows}}}}, found {shown(rows)}")
        for name, splits in rows.items():
            plain_name(name, "the task name")
            spec = (specs or {}).get(name, TaskSpec("accuracy"))
            check = text_rows if spec.is_text else to_rows
            train, test = (check(splits.get(split), f"task {name} {split}") for split in ("train", "test"))
            validation = check(splits["eval"], f"task {name} eval") if "eval" in splits else []
            tasks.append(Task(name, spec, train, test, validation))
        return cls(tuple(tasks))


def read_task_file(path: Path) -> tuple[dict[str, TaskSpec], dict[str, list[str]], str]:
    """Reads a task file of text; returns ({task: spec}, {order: tasks}, stream name).

    Raises:
        UserError: the file is missing or not YAML, is of another domain, or an entry or an order is malformed.
    """
    content, orders, label = read_outline(path)
    if (domain := content.get("domain", "text")) != "text":
        raise UserError(f"{path}: is a task file of domain {shown(domain)}; one of text is needed here")
    return {name: read_entry(TaskSpec, path, name, entry) for name, entry in content["tasks"].items()}, orders, label


def read_outline(path: Path) -> tuple[dict[str, Any], dict[str, list[str]], str]:
    """Reads a task file of any domain, without its entries; returns (content, {order: tasks}, stream name).

    Raises:
        UserError: the file is missing or not YAML, has no tasks, or an order is malformed.
    """
    content = read_yaml(path, "task_file is a YAML file like tasks/trace/trace.yaml")
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict) or not content["tasks"]:
        raise UserError(f'{path}: a task file has a mapping "tasks" of task names to their entries')
    for name in content["tasks"]:
        plain_name(name, f"{path}: the task name")
    orders = {} if content.get("orders") is None else content["orders"]
    if not isinstance(orders, dict):
        raise UserError(f"{path}: orders is a mapping of names to lists of task names, found {shown(orders)}")
    for name, tasks in orders.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: orders: the name {shown(name)} is not text; put it in quotes")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise UserError(f"{path}: orders: {name} must be a list of task names, found {shown(tasks)}")
    label = [content.get(key, other) for key, other in (("name", path.stem), ("version", 1))]
    for key, value in zip(("name", "version"), label, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > LONGEST_LABEL:
            raise UserError(f"{path}: {key} is a text or a number, found {shown(value)}")
    return content, orders, "{} version {}".format(*label)


def read_entry(kind: type[Spec], path: Path, name: str, entry: Any, but: Sequence[str] = ()) -> Spec:
    """Converts a task's entry in a task file to a pydantic dataclass; the fields `but` are no keys of an entry.

    Raises:
        UserError: a key is unknown, or a value is invalid.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{path}: task {name}: an entry is a mapping like {{scorer: accuracy}}, found {shown(entry)}")
    known = [each.name for each in dataclasses.fields(kind) if each.name not in but]  # type: ignore[arg-type]
    for key in entry:
        if key not in known:
            raise UserError(f'{path}: task {name}: unknown key "{key}"; a task has {", ".join(known)}')
    try:
        return type_adapter(kind).validate_python(entry)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        # `loc` also contains the alternatives of a union
        parts = [str(part) for part in first["loc"] if part != "str" and not str(part).startswith("tuple[")]
        place = ".".join(parts)
        if first["type"] == "value_error":
            raise UserError(f"{path}: task {name}: {first['msg'].removeprefix('Value error, ')}") from None
        raise UserError(f"{path}: task {name}: {place}: {first['msg']}, found {shown(first['input'])}") from None


def resolve_order(
    order: str | Sequence[str], orders: dict[str, list[str]], specs: Mapping[str, Any], path: str
) -> list[str]:
    """Returns the tasks of `order`: the name of an order in the task file, a task, or several (a list, or "A,B").

    Raises:
        UserError: there is no such order or task, or one is named twice.
    """
    if isinstance(order, str):
        if order in orders:
            order = orders[order]
        elif order in specs:
            order = [order]
        elif order == "order1" and not orders:
            order = list(specs)
        elif "," in order:
            order = [name.strip() for name in order.split(",")]
        else:
            raise UserError(f'order: "{order}" is neither an order nor a task of {path}; it has '
                            f"{', '.join([*orders, *specs])}")  # fmt: skip
    for name in order:
        if name not in specs:
            raise UserError(f'order: unknown task "{name}"; {path} has {", ".join(specs)}')
        if list(order).count(name) > 1:
            raise UserError(f'order: task "{name}" is listed twice; a stream has each task once')
    if not order:
        raise UserError("order: no task; name at least one")
    return list(order)


def check_same_tasks(path: Path, names: Sequence[str]) -> None:
    """Checks that orders to be compared have the same tasks, since measures are averaged over them.

    Raises:
        UserError: an order is unknown, or has other tasks than the first.
    """
    content, orders, _ = read_outline(path)
    tasks = {name: resolve_order(name, orders, content["tasks"], str(path)) for name in names}
    first, *others = tasks
    for name in others:
        if sorted(tasks[name]) != sorted(tasks[first]):
            raise UserError(
                f"compare: orders {first} ({', '.join(tasks[first])}) and {name} ({', '.join(tasks[name])}) are of "
                "other tasks; name orders of the same ones, or compare each by itself"
            )


def _subset(rows: int, limit: int | None, label: str) -> list[int]:
    """Returns the row numbers (from 1) of a fixed random subset of at most `limit` rows, in order."""
    numbers = range(1, rows + 1)
    return list(numbers) if limit is None or limit >= rows else sorted(random.Random(label).sample(numbers, limit))
