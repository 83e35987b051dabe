"""Converts pictures to CLIP's pixels: the official transforms of training and of evaluation, in PIL and numpy.

    evaluation   short side resized to `size` with a bicubic filter, center crop
    training     a crop of 0.9 to 1 of the area, sides within 3 : 4, resized to `size` with a bicubic filter

transformers' CLIPImageProcessor rounds the offset of an odd margin down where the official code rounds half to even.
"""

import math
import random
from collections.abc import Sequence

import numpy
from PIL import Image

SCALE = (0.9, 1.0)  # share of the area that a crop has
RATIO = (3 / 4, 4 / 3)  # its width over its height
TRIES = 10
BICUBIC = Image.Resampling.BICUBIC


def center(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> numpy.ndarray:
    """Returns the center crop of an RGB picture, as float32 [3, size, size]."""
    width, height = image.size
    if width <= height:
        scaled = image.resize((size, int(size * height / width)), BICUBIC)
    else:
        scaled = image.resize((int(size * width / height), size), BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled.size)
    return _normalized(scaled.crop((left, top, left + size, top + size)), mean, std)


def random_crop(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float], seed: int | str
) -> numpy.ndarray:
    """Returns the crop of an RGB picture that the seed determines, as float32 [3, size, size].

    In a picture of an aspect ratio beyond 3 : 2, no such crop fits: it is always the middle, 4 : 3.
    """
    box = _random_box(image.width, image.height, random.Random(seed))
    return _normalized(image.crop(box).resize((size, size), BICUBIC), mean, std)


def _random_box(width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Draws (left, top, right, bottom) like torchvision's RandomResizedCrop; the middle where no drawn crop fits."""
    low, high = map(math.log, RATIO)
    for _ in range(TRIES):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = generator.randint(0, width - wide), generator.randint(0, height - tall)
            return left, top, left + wide, top + tall
    wide, tall = width, height
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> numpy.ndarray:
    values = numpy.asarray(image, numpy.float32) / numpy.float32(255)
    values -= numpy.asarray(mean, numpy.float32)
    values /= numpy.asarray(std, numpy.float32)
    return numpy.ascontiguousarray(values.transpose(2, 0, 1))
