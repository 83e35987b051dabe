"""Locations of copies of the benchmark's data sets: CoOp's folders, and the names that torchvision gives them.

A split file is CoOp's: {"train", "val", "test"}, lists of [path below the picture folder, label from 0, class name].
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.files import read_json, read_text
from codyra_llm.text import shown

SPLIT_FILES = "split files are linked from DATASETS.md of KaiyangZhou/CoOp on GitHub"
EXPECTED = "a split file is {train, val, test}, lists of [path, label from 0, class name]"
Named = tuple[str, int, str]  # path below the picture folder, label, class name


@dataclass(frozen=True)
class Layout:
    """The folders of a data set below the data folder, in the order they are tried, and the files that one must have.

    Attributes:
        folders: names of the data set's folder.
        source: where the pictures can be downloaded.
        split_file: name of the split file; empty if the data set has none.
        pictures: possible names of the folder that the split file's paths are relative to.
        parts: possible names of each further file or folder; one of each must exist.
        counts: number of training and test pictures in the usual split.
    """

    folders: tuple[str, ...]
    source: str
    split_file: str = ""
    pictures: tuple[str, ...] = (".",)
    parts: tuple[tuple[str, ...], ...] = ()
    counts: tuple[int, int] = field(kw_only=True)

    def missing(self, folder: Path) -> list[str]:
        """Returns the names of what a copy in this folder lacks."""
        needed = ((self.split_file or ".",), self.pictures, *self.parts)
        return [
            " or ".join(names) for names in needed if not any(map(os.path.exists, (folder / name for name in names)))
        ]

    def picture_folder(self, folder: Path) -> Path:
        """Returns the folder that the split file's paths are relative to."""
        return next(folder / name for name in self.pictures if (folder / name).exists())


def _idx(name: str) -> tuple[str, str]:
    return name, f"{name}.gz"


VGG = "www.robots.ox.ac.uk/~vgg/data"
LAYOUTS = {
    "aircraft": Layout(
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        f"{VGG}/fgvc-aircraft",
        pictures=("images",),
        parts=(("variants.txt",), ("images_variant_train.txt",), ("images_variant_test.txt",)),
        counts=(3_334, 3_333),
    ),
    "caltech101": Layout(
        ("caltech-101", "caltech101"),
        "data.caltech.edu/records/mzrjq-6wc02",
        "split_zhou_Caltech101.json",
        ("101_ObjectCategories",),
        counts=(4_128, 2_465),
    ),
    "dtd": Layout(
        ("dtd", "dtd/dtd"), f"{VGG}/dtd", "split_zhou_DescribableTextures.json", ("images",), counts=(2_820, 1_692)
    ),
    "eurosat": Layout(
        ("eurosat",), "github.com/phelber/EuroSAT", "split_zhou_EuroSAT.json", ("2750",), counts=(13_500, 8_100)
    ),
    "flowers": Layout(
        ("oxford_flowers", "flowers-102"),
        f"{VGG}/flowers/102",
        "split_zhou_OxfordFlowers.json",
        ("jpg",),
        counts=(4_093, 2_463),
    ),
    "food101": Layout(
        ("food-101",),
        "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        "split_zhou_Food101.json",
        ("images",),
        counts=(50_500, 30_300),
    ),
    "mnist": Layout(
        ("MNIST/raw", "mnist"),
        "yann.lecun.com/exdb/mnist, or any of its mirrors",
        parts=tuple(
            _idx(f"{split}-{kind}-ubyte") for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
        ),
        counts=(60_000, 10_000),
    ),
    "pets": Layout(
        ("oxford_pets", "oxford-iiit-pet"),
        f"{VGG}/pets",
        "split_zhou_OxfordPets.json",
        ("images",),
        counts=(2_944, 3_669),
    ),
    "cars": Layout(
        ("stanford_cars",),
        "mirrors of Stanford Cars, whose own site is gone",
        "split_zhou_StanfordCars.json",
        parts=(("cars_train",), ("cars_test",)),
        counts=(6_509, 8_041),
    ),
    "sun397": Layout(
        ("sun397", "SUN397"),
        "vision.princeton.edu/projects/2010/SUN",
        "split_zhou_SUN397.json",
        ("SUN397", "../SUN397"),
        counts=(15_880, 19_850),
    ),
    "cifar100": Layout(
        ("cifar-100-python",),
        "www.cs.toronto.edu/~kriz/cifar.html",
        parts=(("train",), ("test",), ("meta",)),
        counts=(50_000, 10_000),
    ),
}


def find_folder(reader: str, data_dir: Path, path: str | None = None) -> Path:
    """Returns the first folder among the data set's names (or `path` alone) that is complete.

    Raises:
        UserError: no such folder exists, or the most complete one lacks files; the message says where to get them.
    """
    layout = LAYOUTS[reader]
    names = (path,) if path else layout.folders
    there = [data_dir / name for name in names if os.path.isdir(data_dir / name)]
    come_from = f"pictures come from {layout.source}" + (f"; {SPLIT_FILES}" if layout.split_file else "")
    if not there:
        raise UserError(f"{data_dir}: has no folder {' or '.join(names)}; {come_from}")
    missing = {folder: layout.missing(folder) for folder in there}
    folder = min(there, key=lambda each: len(missing[each]))
    if missing[folder]:
        raise UserError(f"{folder}: {', '.join(missing[folder])} missing; {come_from}")
    return folder


def read_split_file(file: Path) -> tuple[list[Named], list[Named], list[str]]:
    """Reads a CoOp split file; returns (train, test, class names by label).

    Raises:
        UserError: it has another form, a row is malformed, or labels and class names do not match.
    """
    content = read_json(file, EXPECTED)
    if not isinstance(content, dict):
        raise UserError(f"{file}: {EXPECTED}, found {shown(content)}")
    names: dict[int, str] = {}
    train, test = (_read_rows(file, content, split, names) for split in ("train", "test"))
    learned = {label for _, label, _ in train}
    for number, (_, label, name) in enumerate(test, start=1):
        if label not in learned:
            raise UserError(f"{file} test row {number}: class {label} ({shown(name)}) has no row in train")
    if lacking := next((label for label in range(len(names)) if label not in names), None):
        raise UserError(f"{file}: no row has label {lacking}; labels go from 0 to the number of classes less one")
    if 0 not in names:
        raise UserError(f"{file}: no row has label 0; labels are counted from 0")
    return train, test, [names[label] for label in range(len(names))]


def _read_rows(file: Path, content: dict[str, Any], split: str, names: dict[int, str]) -> list[Named]:
    rows = content.get(split)
    if not isinstance(rows, list) or not rows:
        raise UserError(f'{file}: "{split}" is {shown(rows)}; {EXPECTED}')
    for number, row in enumerate(rows, start=1):
        where = f"{file} {split} row {number}"
        fits = isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[2], str)
        if not fits or isinstance(row[1], bool) or not isinstance(row[1], int) or row[1] < 0:
            raise UserError(f"{where}: is {shown(row)}; {EXPECTED}")
        if names.setdefault(row[1], row[2]) != row[2]:
            raise UserError(f"{where}: label {row[1]} is {shown(row[2])}, and {shown(names[row[1]])} before")
    return [(path, label, name) for path, label, name in rows]


def read_aircraft(folder: Path) -> tuple[list[Named], list[Named], list[str]]:
    """Reads FGVC Aircraft: lines of "ID VARIANT", and variants.txt; returns (train, test, class names by label).

    Raises:
        UserError: a line is malformed, or names a variant that is not in variants.txt.
    """
    names = [line.strip() for line in read_text(folder / "variants.txt").splitlines() if line.strip()]
    labels = {name: label for label, name in enumerate(names)}
    splits = []
    for split in ("train", "test"):
        file = folder / f"images_variant_{split}.txt"
        rows: list[Named] = []
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            identity, _, name = line.strip().partition(" ")
            if not line.strip():
                continue
            if name not in labels:
                raise UserError(f'{file} line {number}: {shown(line)} is not "ID VARIANT" with one of variants.txt')
            rows.append((f"{identity}.jpg", labels[name], name))
        splits.append(rows)
    return splits[0], splits[1], names
