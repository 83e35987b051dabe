"""Small copies of the benchmark's data sets, in the usual folder layouts; and the plan of a run on a small CLIP."""

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from codyra_llm.distributed.ranks import Ranks
from codyra_llm.models.load import load_model
from codyra_llm.planning.run_plan import RunPlan, plan_run
from tests.clip import clip_run, color_stream, save_clip

CLASSES = ("alpha_one", "beta two", "gamma")
Row = tuple[str, int, str]


def save_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (9, 12, 3), numpy.uint8)).save(path)


def save_split_set(folder: Path, split_file: str, pictures: str, below: str = "") -> None:
    """Writes a data set with a split file: two training pictures and one test picture of each class."""
    content: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        for number, split in enumerate(("train", "train", "val", "test")):
            path = f"{below}{name}/{number}.jpg"
            content[split].append((path, label, name))
            if split != "val":
                save_picture(folder / pictures / path, seed=10 * label + number)
    (folder / split_file).write_text(json.dumps(content))


def save_idx(file: Path, values: numpy.ndarray, packed: bool = False) -> None:
    content = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


def save_mnist(folder: Path, packed: bool = False) -> None:
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = numpy.random.default_rng(count).integers(0, 256, (count, 28, 28), numpy.uint8)
        save_idx(folder / f"{prefix}-images-idx3-ubyte", images, packed)
        save_idx(folder / f"{prefix}-labels-idx1-ubyte", numpy.arange(count, dtype=numpy.uint8) % 10, packed)


def save_cifar100(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("test", 3)):
        data = numpy.random.default_rng(count).integers(0, 256, (count, 3072), numpy.uint8)
        content = {b"data": data, b"fine_labels": [number % 3 for number in range(count)], b"filenames": [b"a"] * count}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"sweet_pepper", b"ray"]}, protocol=2))


def save_aircraft(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA340-500\nSpitfire Mk 1\n")
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(("707-320", "A340-500", "Spitfire Mk 1") * 2):
        split = "train" if number < 3 else "test"
        lines[split].append(f"{number:07} {name}")
        save_picture(folder / "images" / f"{number:07}.jpg", number)
    for split, written in lines.items():
        (folder / f"images_variant_{split}.txt").write_text("\n".join([*written, ""]))


SETS: dict[str, Callable[[Path], None]] = {
    "aircraft": lambda data: save_aircraft(data / "fgvc_aircraft"),
    "caltech101": lambda data: save_split_set(
        data / "caltech-101", "split_zhou_Caltech101.json", "101_ObjectCategories"
    ),
    "dtd": lambda data: save_split_set(data / "dtd", "split_zhou_DescribableTextures.json", "images"),
    "eurosat": lambda data: save_split_set(data / "eurosat", "split_zhou_EuroSAT.json", "2750"),
    "flowers": lambda data: save_split_set(data / "oxford_flowers", "split_zhou_OxfordFlowers.json", "jpg"),
    "food101": lambda data: save_split_set(data / "food-101", "split_zhou_Food101.json", "images"),
    "mnist": lambda data: save_mnist(data / "MNIST" / "raw"),
    "pets": lambda data: save_split_set(data / "oxford_pets", "split_zhou_OxfordPets.json", "images"),
    "cars": lambda data: save_cars(data / "stanford_cars"),
    "sun397": lambda data: save_split_set(data / "sun397", "split_zhou_SUN397.json", "SUN397"),
    "cifar100": lambda data: save_cifar100(data / "cifar-100-python"),
}
ALIASES: dict[str, Callable[[Path], None]] = {
    "aircraft": lambda data: save_aircraft(data / "fgvc-aircraft-2013b" / "data"),
    "caltech101": lambda data: save_split_set(
        data / "caltech101", "split_zhou_Caltech101.json", "101_ObjectCategories"
    ),
    "dtd": lambda data: save_split_set(data / "dtd" / "dtd", "split_zhou_DescribableTextures.json", "images"),
    "flowers": lambda data: save_split_set(data / "flowers-102", "split_zhou_OxfordFlowers.json", "jpg"),
    "mnist": lambda data: save_mnist(data / "mnist", packed=True),
    "pets": lambda data: save_split_set(data / "oxford-iiit-pet", "split_zhou_OxfordPets.json", "images"),
    "sun397": lambda data: save_split_set(data / "SUN397", "split_zhou_SUN397.json", "."),
}


def save_cars(folder: Path) -> None:
    save_split_set(folder, "split_zhou_StanfordCars.json", ".", below="cars_train/")
    (folder / "cars_test").mkdir()


@pytest.fixture
def benchmark_data(tmp_path: Path) -> Path:
    """Small copies of all eleven data sets, under CoOp's folder names."""
    for save in SETS.values():
        save(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """The plan of a run of two color domains."""
    folder = save_clip(tmp_path_factory.mktemp("clip") / "model")
    return plan_run(clip_run(folder, folder), Ranks(0, 1, torch.device("cpu")), color_stream())


@pytest.fixture(scope="module")
def model(plan: RunPlan) -> Any:
    return load_model(plan.source)
