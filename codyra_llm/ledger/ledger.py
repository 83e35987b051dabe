"""The ledger of a run: the base model, and the update of each finished task, in order.

ledger/
    ledger.json     base model by name and hash; for each entry its hashes, size, settings and scores
    01-FOMC/        an entry (`ledger.entry`): a LoRA adapter in PEFT's format
    02-.../

A model is the base model plus the sum of its entries, so an entry can be left out or scaled at any time. Entries are
added and never changed; files are checked against the hashes when they are read, and names with a path are rejected. A
hash detects a damaged ledger; it does not authenticate its author.
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
    """The base model of a ledger: its name in the run, the hash of its weights, and the dtype that it was used in."""

    name: str
    sha256: _Hash
    dtype: Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Entry:
    """The entry of one finished task.

    Attributes:
        name: of the entry's folder.
        task: name of the task.
        sha256: of its files, by name.
        projections: number of projections that it changes.
        components: the sum of its ranks over projections.
        norm: the Frobenius norm of its update.
        settings: hash of the settings that the task was learned with; "" if unknown.
        scores: of each task, right after this one.
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
    """The content of ledger.json."""

    base_model: BaseModel
    entries: tuple[Entry, ...] = ()
    combined: dict[str, Any] = dataclasses.field(default_factory=dict)  # `describe_combination`; empty: summed

    def name_of_next(self, task: str) -> str:
        """Returns the folder name of the entry that comes next, for a task."""
        return f"{len(self.entries) + 1:02d}-{task}"

    def with_entry(self, entry: Entry) -> "Ledger":
        """Returns the ledger with one more entry."""
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def with_scores(self, scores: dict[str, float]) -> "Ledger":
        """Returns the ledger with the scores after its last entry."""
        return dataclasses.replace(
            self, entries=(*self.entries[:-1], dataclasses.replace(self.entries[-1], scores=scores))
        )

    def remark(self, names: Collection[str]) -> str:
        """Returns a remark that names those of the entries without components, which change no weight; "" if none."""
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
        """SHA-256 of the ledger's content: the base model and all data of the entries, in order."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @property
    def content(self) -> dict[str, Any]:
        """The ledger's data in ledger.json."""
        content = dataclasses.asdict(self)
        return content if self.combined else {key: value for key, value in content.items() if key != "combined"}

    @property
    def _state_of_version_1(self) -> str:
        """The `state` of schema version 1, over the hashes of the base model and of the entries' files only."""
        return hashlib.sha256(json.dumps([self.base_model.sha256, list(self.files.items())]).encode()).hexdigest()

    def position(self, name: str) -> int:
        """Returns the index of an entry, from 0, by its task or by its folder (if a task was learned twice).

        Raises:
            UserError: there is no such entry, or there are several.
        """
        found = [i for i, entry in enumerate(self.entries) if name in (entry.name, entry.task)]
        if len(found) != 1:
            problem = f'no entry is "{name}"' if not found else f'"{name}" was learned {len(found)} times'
            raise UserError(f"{problem}; the ledger has {', '.join(entry.name for entry in self.entries) or 'none'}")
        return found[0]


def parse_ledger(content: Any, where: str) -> Ledger:
    """Returns a ledger from its JSON content; `where` names the place in errors.

    Raises:
        UserError: something is missing or has the wrong type, or names of entries or files are not those of a run.
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
    """Writes ledger.json to a temporary file and renames that; the entries' folders must already exist."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": SCHEMA_VERSION, "state": ledger.state, **ledger.content}
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def read_ledger(folder: Path) -> Ledger:
    """Reads a ledger, and checks every file against its hash.

    Raises:
        UserError: the folder is no ledger, or a file is missing or damaged.
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
    """Returns the ledger that a run adds to: that of its checkpoint, the one that it extends, or an empty one.

    Args:
        config: the configuration of the run.
        source: the run's base model.
        begun: the content of the ledger in a checkpoint; None: the run does not resume.

    Raises:
        UserError: the run's model is not the ledger's base model, the ledger to extend is damaged, or its entries are
            combined in a different way.
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
    """Raises UserError if a model is not the base model of a ledger."""
    found, base = source.sha256, ledger.base_model
    if found != base.sha256:
        raise UserError(
            f"the ledger was made for {base.name} (weights {base.sha256[:12]}), {source.name} has other weights "
            f"({found[:12]}); give the model that it was made for"
        )


def copy_entries(ledger: Ledger, source: Path, target: Path) -> None:
    """Copies the entries' files, and no others, into another ledger, with new READMEs."""
    for entry in ledger.entries:
        with replace_folder(target / entry.name) as scratch:
            for name in entry.sha256:
                shutil.copyfile(ordinary_file(source / entry.name, name), scratch / name)
            write_readme(scratch)
