"""Reads domains of pictures: a folder of class-named folders, a table, a function, or a data set of the benchmark."""

import importlib.util
import operator
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy

from codyra_llm.data.rows import check_rows
from codyra_llm.data.tables import find_files, read_table
from codyra_llm.domains.images import coop
from codyra_llm.domains.images.arrays import MNIST_CLASSES, read_cifar100, read_mnist
from codyra_llm.domains.images.pictures import Picture
from codyra_llm.domains.images.tasks import DomainSpec
from codyra_llm.errors import UserError
from codyra_llm.files import expand
from codyra_llm.text import shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LONGEST_NAME = 200  # characters of a class name
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageDomain:
    """A domain as read: pictures of each split, class names and prompts by label, its location, and notes."""

    name: str
    train: Sequence[Picture]
    test: Sequence[Picture]
    classes: Sequence[str]
    prompts: Sequence[str]
    place: str = ""
    notes: Sequence[str] = ()


@dataclass
class _Found:
    """The result of a reader; `classes` are the names by label, as in the data."""

    train: list[Picture]
    test: list[Picture]
    classes: Sequence[str]
    place: str
    notes: list[str]


def read_domain(spec: DomainSpec, data_dir: Path) -> ImageDomain:
    """Reads the list of all pictures of a domain; opens no picture.

    Raises:
        UserError: a folder, a file or a picture that it names is missing, a label or a class name is invalid, or a
            split has no pictures; the message says where.
    """
    found = READERS.get(spec.reader, _read_benchmark)(spec, expand(data_dir))
    where = f"{found.place}: task {spec.name}"
    for split, pictures in zip(SPLITS, (found.train, found.test), strict=True):
        if not pictures:
            raise UserError(f"{where}: {split} has no pictures")
    _check_names(found.classes, spec, where)
    learned = {picture.label for picture in found.train}
    if absent := next((name for label, name in enumerate(found.classes) if label not in learned), None):
        raise UserError(f"{where}: class {shown(absent)} has no picture in train")
    files = {picture.source for picture in found.train if isinstance(picture.source, Path)}
    if both := sum(picture.source in files for picture in found.test if isinstance(picture.source, Path)):
        found.notes.append(f"{where}: {both} of {len(found.test)} test pictures are also in train")
    if len(found.classes) == 1:
        found.notes.append(f"{where}: has one class, so that within_task is 100 whatever a model knows")
    classes = [spec.class_name(name) for name in found.classes]
    prompts = [spec.prompt(name) for name in found.classes]
    return ImageDomain(spec.name, found.train, found.test, classes, prompts, found.place, found.notes)


def _check_names(classes: Sequence[str], spec: DomainSpec, where: str) -> None:
    """Raises UserError if a class name is invalid, or two are the same and so would have the same prompt."""
    labels: dict[str, int] = {}
    for label, name in enumerate(classes):
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise UserError(f"{where}: class name {shown(name)} is empty, not printable or too long; rename it")
        if labels.setdefault(spec.class_name(name), label) != label:
            raise UserError(
                f"{where}: classes {labels[spec.class_name(name)]} and {label} have one name, {shown(name)}"
            )


def _read_folders(spec: DomainSpec, data_dir: Path) -> _Found:
    """Reads `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; the classes are the folders of train, sorted by name."""
    folder = _folder(spec, data_dir, "holds train/CLASS/*.jpg and test/CLASS/*.jpg")
    classes = _folders_in(folder / "train")
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[Picture]] = {}
    notes = []
    for split in SPLITS:
        splits[split] = []
        for name in _folders_in(folder / split):
            if name not in labels:
                raise UserError(f"{folder / split / name}: {folder / 'train'} has no folder of that name, "
                                "so the class is never learned")  # fmt: skip
            names = sorted(entry for entry in _entries(folder / split / name) if not entry.startswith("."))
            used = [entry for entry in names if entry.lower().endswith(SUFFIXES)]
            if len(used) < len(names):
                other = next(entry for entry in names if entry not in used)
                notes.append(f"{folder / split / name}: {len(names) - len(used)} files are no pictures by their "
                             f"names and not used, as {shown(other)}")  # fmt: skip
            splits[split] += [Picture(labels[name], folder / split / name / entry) for entry in used]
    return _Found(splits["train"], splits["test"], classes, str(folder), notes)


def _read_csv(spec: DomainSpec, data_dir: Path) -> _Found:
    """Reads tables train and test with columns path (below their folder) and class; classes are sorted by name."""
    folder = _folder(spec, data_dir, "holds train.csv and test.csv with the columns path and class")
    tables = {}
    for split in SPLITS:
        (file,) = find_files(folder, split)
        tables[split] = file, check_rows(read_table(file), str(file), ("path", "class"))
        _check_one_class(file, tables[split][1])
    classes = sorted({row["class"] for row in tables["train"][1]})
    labels = {name: label for label, name in enumerate(classes)}
    splits = {}
    for split, (file, rows) in tables.items():
        for number, row in enumerate(rows, start=1):
            if row["class"] not in labels:
                raise UserError(f"{file} row {number}: class {shown(row['class'])} has no row in {tables['train'][0]}")
        splits[split] = _pictures(folder, [(row["path"], labels[row["class"]], "") for row in rows], str(file))
    return _Found(splits["train"], splits["test"], classes, str(folder), [])


def _check_one_class(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Raises UserError if a table lists a picture under two classes."""
    seen: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, start=1):
        before, name = seen.setdefault(row["path"], (number, row["class"]))
        if name != row["class"]:
            raise UserError(
                f"{file} row {number}: {shown(row['path'])} is {shown(row['class'])}, and {shown(name)} in row "
                f"{before}; a picture has one class"
            )


def _read_benchmark(spec: DomainSpec, data_dir: Path) -> _Found:
    """Reads one of the data sets in coop.LAYOUTS."""
    folder = coop.find_folder(spec.reader, data_dir, spec.path)
    layout = coop.LAYOUTS[spec.reader]
    if spec.reader == "mnist":
        arrays = {split: read_mnist(folder, split) for split in SPLITS}
        return _of_arrays(arrays, MNIST_CLASSES, str(folder))
    if spec.reader == "cifar100":
        return _of_arrays(*read_cifar100(folder), str(folder))
    where = folder / layout.split_file
    train, test, classes = coop.read_aircraft(folder) if spec.reader == "aircraft" else coop.read_split_file(where)
    base = layout.picture_folder(folder)
    return _Found(_pictures(base, train, f"{where} train"), _pictures(base, test, f"{where} test"), classes,
                  str(folder), [])  # fmt: skip


def _read_generated(spec: DomainSpec, data_dir: Path) -> _Found:
    """Calls the function of a `Generator`; `path` is the domain's name in that function, where it differs."""
    assert spec.generate is not None  # checked by DomainSpec
    file, _, name = spec.generate.function.partition(":")
    where = f"{spec.folder / file}: {name}"
    function = getattr(_module(spec.folder / file), name, None)
    if not callable(function):
        raise UserError(f"{where}: no such function")
    arrays: dict[str, tuple[numpy.ndarray, list[int]]] = {}
    classes: list[str] = []
    for split, count in zip(SPLITS, (spec.generate.train, spec.generate.test), strict=True):
        try:
            images, labels, names = function(spec.path or spec.name, split, count, spec.generate.seed)
            labels, names = list(map(operator.index, labels)), list(names)
        except Exception as error:  # a user's code may do anything
            raise UserError(f"{where}: failed: {type(error).__name__}: {error}") from error
        _check_generated(images, labels, names, f"{where} {split}")
        if classes and names != classes:
            raise UserError(f"{where}: gave other classes for {split} than for {SPLITS[0]}, or in another order")
        arrays[split], classes = (images, labels), names
    return _of_arrays(arrays, classes, where)


READERS: dict[str, Callable[[DomainSpec, Path], _Found]] = {
    "folders": _read_folders,
    "csv": _read_csv,
    "generated": _read_generated,
}


def _module(file: Path) -> ModuleType:
    """Imports a Python file as a module, without adding it to sys.modules."""
    spec = importlib.util.spec_from_file_location(f"codyra_llm_generator_{file.stem}", file)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code may do anything
        raise UserError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _check_generated(images: Any, labels: list[int], names: list[Any], where: str) -> None:
    if not isinstance(images, numpy.ndarray) or images.dtype != numpy.uint8 or images.shape[3:] not in ((), (3,)):
        raise UserError(f"{where}: gave no uint8 array [n, height, width, 3]")
    if images.ndim < 3 or not images.size or len(labels) != len(images):
        raise UserError(f"{where}: gave {len(labels)} labels for pictures of shape {images.shape}")
    if other := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{where}: gave the class name {shown(other[0])}, which is no text")
    if not all(0 <= label < len(names) for label in labels):
        raise UserError(f"{where}: gave a label outside of 0 to {len(names) - 1}")


def _of_arrays(arrays: dict[str, tuple[numpy.ndarray, list[int]]], classes: Sequence[str], place: str) -> _Found:
    train, test = ([Picture(label, image) for image, label in zip(*arrays[split], strict=True)] for split in SPLITS)
    return _Found(train, test, classes, place, [])


def _pictures(base: Path, rows: Iterable[coop.Named], where: str) -> list[Picture]:
    """Returns the pictures of rows (path below `base`, label, _); raises UserError if a file is missing."""
    names: dict[Path, set[str]] = defaultdict(set)
    pictures = []
    for number, (name, label, _) in enumerate(rows, start=1):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name or not name.isprintable() or "\\" in name:
            raise UserError(f"{where} row {number}: {shown(name)} is no path below {base}, written with /")
        pictures.append(Picture(label, base / path))
        names[(base / path).parent].add(path.name)
    # one listing per folder: asking for 90,000 files one by one takes minutes on a network file system
    absent = [parent / name for parent, wanted in names.items() for name in wanted - _names_in(parent)]
    if absent:
        raise UserError(f"{where}: {len(absent)} of {len(pictures)} pictures are not there, as {min(absent)}")
    return pictures


def _names_in(folder: Path) -> set[str]:
    """Returns the names in a folder; empty if there is no such folder."""
    return set(_entries(folder)) if os.path.isdir(folder) else set()


def _folder(spec: DomainSpec, data_dir: Path, holds: str) -> Path:
    name = PurePosixPath(spec.path or spec.name)
    folder = data_dir / name
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; that of task {spec.name} {holds}")
    return folder


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None


def _folders_in(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(name for name in _entries(folder) if not name.startswith(".") and os.path.isdir(folder / name))
