"""A labelled picture, from a file or an array, as RGB; files are not trusted, and are rejected in one line."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
from PIL import Image

from codyra_llm.errors import UserError, reason
from codyra_llm.files import sha256

# Pillow reads more formats; some start programs (EPS) or occur in no data set
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST = 2**27  # pixels: 384 MiB as RGB
LONGEST = 100  # long side over short side: the transform scales the short side to the model's, and the other with it
warnings.filterwarnings("ignore", module=r"PIL\.")  # a problem with a picture is reported in one line instead


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with the number of its class in its domain, from 0.

    `source` is a file, or uint8 [height, width] or [height, width, 3]. Pictures of equal content do not compare equal;
    their `digest` is the same.
    """

    label: int
    source: Path | numpy.ndarray

    @cached_property
    def sha256(self) -> bytes:
        """The picture's `digest`, computed once."""
        return digest(self)


def open_picture(picture: Picture) -> Image.Image:
    """Opens a picture as RGB, first frame only; EXIF orientation is ignored, as in the official code.

    Transparency is dropped; of 16 bits, the upper 8 are kept.

    Raises:
        UserError: the file is no picture, damaged or truncated, or has too many pixels or too narrow a shape.
    """
    if isinstance(picture.source, numpy.ndarray):
        return Image.fromarray(picture.source).convert("RGB")
    path = picture.source
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path, *image.size)
            return _to_rgb(image)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{path}: is no picture, or is cut off in its first bytes; {', '.join(FORMATS)} are") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than {LARGEST} pixels; scale it down") from None
    except OSError as error:
        problem = error.strerror or f"cannot be decoded ({reason(error)}); fetch it again, or leave it out"
        raise UserError(f"{path}: {problem}") from None
    except Exception as error:  # each of a dozen decoders has exceptions of its own
        raise UserError(f"{path}: cannot be decoded ({reason(error)}); fetch it again, or leave it out") from None


def digest(picture: Picture) -> bytes:
    """Returns the SHA-256 of the file's content, or of the array and its shape.

    Raises:
        UserError: the file cannot be read.
    """
    source = picture.source
    if isinstance(source, numpy.ndarray):
        return hashlib.sha256(repr(source.shape).encode() + numpy.ascontiguousarray(source).tobytes()).digest()
    try:
        return bytes.fromhex(sha256(source))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {getattr(error, 'strerror', None) or error}") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST:
        raise UserError(f"{path}: {width} x {height} is more than {LARGEST} pixels; scale it down")
    if max(width, height) > LONGEST * min(width, height):
        raise UserError(f"{path}: {width} x {height} is narrower than 1 : {LONGEST}; crop it, or leave it out")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{image.filename}: holds floating-point values; save it with 8 bits")  # type: ignore[attr-defined]
    if image.mode.startswith("I"):  # Pillow itself would clip values at 255
        values = numpy.asarray(image).astype(numpy.int64)
        return Image.fromarray((values.clip(0, 0xFFFF) >> 8).astype(numpy.uint8)).convert("RGB")
    return image.convert("RGB")
