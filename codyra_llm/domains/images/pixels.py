"""Converts pictures to the pixels of a model: sizes from the model's folder, decoding on threads."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers.utils import cached_file

from codyra_llm.domains.images.pictures import Picture, open_picture
from codyra_llm.domains.images.transform import center, random_crop
from codyra_llm.errors import UserError
from codyra_llm.files import read_json
from codyra_llm.models.source import Source

FILE = "preprocessor_config.json"
MOST_THREADS = 16


@dataclass(frozen=True)
class Pixels:
    """The side of a model's square input, and the mean and standard deviation of each color."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def content(self) -> list[Any]:
        """The fields as JSON."""
        return [self.size, list(self.mean), list(self.std)]

    def to_score(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """[pictures, 3, size, size], fp32: the center crop of each picture."""

        def read(picture: Picture) -> numpy.ndarray:
            return center(open_picture(picture), self.size, self.mean, self.std)

        return _stacked(_threads().map(read, pictures), self.size)

    def to_learn(self, pictures: Sequence[Picture], seeds: Sequence[str]) -> torch.Tensor:
        """[pictures, 3, size, size], fp32: the crop of each picture that its seed determines."""

        def read(picture: Picture, seed: str) -> numpy.ndarray:
            return random_crop(open_picture(picture), self.size, self.mean, self.std, seed)

        return _stacked(_threads().map(read, pictures, seeds), self.size)


def read_pixels(source: Source) -> Pixels:
    """Reads size, mean and standard deviation from the model folder's preprocessor_config.json.

    Raises:
        UserError: the file is missing or damaged, or the model has another size.
    """
    where = f"model.name_or_path {source.name}"
    try:
        path = Path(str(cached_file(source.path, FILE, local_files_only=source.local_files_only)))
    except OSError:
        raise UserError(f"{where}: holds no {FILE}, which says what pixels the model reads; restore it") from None
    content = read_json(path)
    try:
        pixels = Pixels(
            _side(content.get("crop_size") or content["size"]),
            tuple(map(float, content["image_mean"])),
            tuple(map(float, content["image_std"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {FILE}: {json.dumps(str(error))}; it must have crop_size, image_mean and image_std"
        ) from None
    expected = source.config.vision_config.image_size
    if pixels.size != expected or len(pixels.mean) != 3 or len(pixels.std) != 3 or not all(pixels.std):
        raise UserError(
            f"{where}: {FILE} has pictures of {pixels.size} x {pixels.size} and {len(pixels.mean)} means, the model "
            f"reads {expected} x {expected} and 3 colors; restore it"
        )
    return pixels


def _side(size: Any) -> int:
    """Returns the side of a square, in the format of any version of transformers."""
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if key in size}
        (size,) = sides
    return int(size)


def _stacked(arrays: Any, size: int) -> torch.Tensor:
    found = [torch.from_numpy(array) for array in arrays]
    return torch.stack(found) if found else torch.zeros(0, 3, size, size)


@cache
def _threads() -> ThreadPoolExecutor:
    """The threads that decode pictures; Pillow releases the GIL while it decodes and resizes."""
    return ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)) + 1), thread_name_prefix="pixels")
