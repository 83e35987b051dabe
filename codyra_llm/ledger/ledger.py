"""The ledger of a run: the base model, and what each finished task added to it, in order.

ledger/
    ledger.json     base model by name and hash; of each entry its hashes, size, settings and scores
    01-FOMC/        an entry (`ledger.entry`): a LoRA adapter in PEFT's format
    02-.../

A model is the base model plus the sum of its entries, so an entry can be left out, or weighed, at any time. Entries are
added and never changed; what is read is checked against the hashes, and names that lead elsewhere are refused. A hash
tells a damaged ledger from a whole one; it does not say who wrote it.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError
from codyra_llm.files import expand, ordinary_file, plain_name, read_json, replace_folder, sha256, validated, write_text
from codyra_llm.ledger.combination import describe_combination
from codyra_llm.ledger.entry import CONFIG, WEIGHTS, write_readme
from codyra_llm.models.source import Source
from codyra_llm.text import shown

FILE = "ledger.json"
SCHEMA_VERSION = 2

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class BaseModel:
    """The model that a ledger begins with: what it was called, the hash of its weights, the dtype it was held in."""

    name: str
    sha256: _Hash
    dtype: Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Entry:
    """One finished task.

    `sha256` of its files by name; `components`: the sum of its ranks over `projections`; `norm`: the Frobenius norm of
    its update; `settings`: the hash of what it was learned with; `scores` of each task right after it.
    """

    name: str
    task: str
    sha256: dict[str, _Hash]
    projections: _Count
    components: _Count
    norm: _Size
    settings: str = ""
    scores: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """What stands in ledger.json."""

    base_model: BaseModel
    entries: tuple[Entry, ...] = ()
    combined: dict[str, Any] = dataclasses.field(default_factory=dict)  # `describe_combination`; empty: summed

    def name_of_next(self, task: str) -> str:
        """The folder of the entry that a task will have."""
        return f"{len(self.entries) + 1:02d}-{task}"

    def with_entry(self, entry: Entry) -> "Ledger":
        """The ledger and one entry more."""
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def with_scores(self, scores: dict[str, float]) -> "Ledger":
        """The ledger with what was scored after its last entry."""
        return dataclasses.replace(
            self, entries=(*self.entries[:-1], dataclasses.replace(self.entries[-1], scores=scores))
        )

    def remark(self, names: Collection[str]) -> str:
        """Which of some entries leave the weights as they were, since nothing was learned that could be merged."""
        without = [entry.name for entry in self.entries if entry.name in names and not entry.components]
        if not without:
            return ""
        return f"{', '.join(without)}: nothing was merged, and the weights are as they were before"

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file of the entries, by path relative to the ledger."""
        return {f"{entry.name}/{file}": digest for entry in self.entries for file, digest in entry.sha256.items()}

    @property
    def state(self) -> str:
        """SHA-256 of all that is said of the base model and of the entries, in order."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @property
    def content(self) -> dict[str, Any]:
        """What ledger.json says of it."""
        content = dataclasses.asdict(self)
        return content if self.combined else {key: value for key, value in content.items() if key != "combined"}

    @property
    def _state_of_version_1(self) -> str:
        """Which left out the dtype, and what is said of an entry beside its files."""
        return hashlib.sha256(json.dumps([self.base_model.sha256, list(self.files.items())]).encode()).hexdigest()

    def position(self, name: str) -> int:
        """Where an entry stands, from 0: by its task or, where a task was learned twice, by its folder.

        Raises:
            UserError: there is no such entry, or several.
        """
        found = [i for i, entry in enumerate(self.entries) if name in (entry.name, entry.task)]
        if len(found) != 1:
            problem = f'no entry is "{name}"' if not found else f'"{name}" was learned {len(found)} times'
            raise UserError(f"{problem}; the ledger has {', '.join(entry.name for entry in self.entries) or 'none'}")
        return found[0]


def parse_ledger(content: Any, where: str) -> Ledger:
    """A ledger from what JSON holds of it.

    Raises:
        UserError: something is missing or of the wrong kind, or a name is none that a run gives.
    """
    ledger = validated(Ledger, content, where, "it is not a ledger that a run wrote")
    for number, entry in enumerate(ledger.entries, 1):
        if plain_name(entry.name, f"{where}: the entry") != f"{number:02d}-{entry.task}":
            named = f"number {number} is {shown(entry.name)}, with the task {shown(entry.task)}"
            raise UserError(f"{where}: its entries are not those that were written: {named}; restore the file")
        if set(entry.sha256) != {WEIGHTS, CONFIG}:
            files = shown(sorted(entry.sha256))
            raise UserError(f"{where}: entry {entry.name} has the files {files}; an entry has {WEIGHTS} and {CONFIG}")
    return ledger


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Writes ledger.json beside and renames it; the entries' folders stand already."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": SCHEMA_VERSION, "state": ledger.state, **ledger.content}
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def read_ledger(folder: Path) -> Ledger:
    """A ledger whose every file is as it was written.

    Raises:
        UserError: it is none, or a file is missing or damaged.
    """
    content = read_json(folder / FILE, "name the folder `ledger` of a run")
    ledger = parse_ledger(content, str(folder / FILE))
    version = content.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{folder / FILE}: schema_version is {shown(version)}, written by another version of codyra_llm; this one "
            f"reads 1 to {SCHEMA_VERSION}"
        )
    if content.get("state") != (ledger.state if version > 1 else ledger._state_of_version_1):
        raise UserError(f"{folder / FILE}: its entries or its base are not those that were written; restore the file")
    for entry in ledger.entries:
        for name, digest in entry.sha256.items():
            path = ordinary_file(folder / entry.name, name)
            try:
                if sha256(path) != digest:
                    raise UserError(f"{path} is damaged; restore it from a copy")
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return ledger


def open_ledger(config: RunConfig, source: Source, begun: dict[str, Any] | None) -> Ledger:
    """The ledger that a run adds to: the one it began, or the one it extends, or an empty one.

    Args:
        source: the run's base model.
        begun: the ledger as a checkpoint keeps it.

    Raises:
        UserError: the run's model is not the one that the ledger begins with, or the ledger to extend is not whole.
    """
    combined = describe_combination(config)
    if begun is None and config.extend is None:
        return Ledger(BaseModel(source.name, source.sha256, config.model.dtype), combined=combined)
    ledger = parse_ledger(begun, "checkpoint") if begun else read_ledger(expand(config.extend or ""))
    check_base(ledger, source)
    if ledger.combined != combined:
        raise UserError(
            f"the ledger's entries are combined by {_combiner(ledger.combined)}, those of this run by "
            f"{_combiner(combined)}; give the method and settings that it was made with"
        )
    return dataclasses.replace(ledger, base_model=dataclasses.replace(ledger.base_model, dtype=config.model.dtype))


def _combiner(combined: dict[str, Any]) -> str:
    return shown(combined) if combined else "their sum"


def check_base(ledger: Ledger, source: Source) -> None:
    """Raises UserError where a model is not the one that a ledger begins with."""
    found, base = source.sha256, ledger.base_model
    if found != base.sha256:
        raise UserError(
            f"the ledger was made for {base.name} (weights {base.sha256[:12]}), {source.name} has other weights "
            f"({found[:12]}); give the model that it was made for"
        )


def copy_entries(ledger: Ledger, source: Path, target: Path) -> None:
    """Copies the entries' files, and nothing that lies beside them, into another ledger."""
    for entry in ledger.entries:
        with replace_folder(target / entry.name) as scratch:
            for name in entry.sha256:
                shutil.copyfile(ordinary_file(source / entry.name, name), scratch / name)
            write_readme(scratch)
