"""Pictures, their transform and few-shot draws compared with the official code; errors for damaged pictures."""

import json
import random
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from codyra_llm.domains.images.draws import draw, reference_draw, reference_indices
from codyra_llm.domains.images.pictures import LARGEST, Picture, digest, open_picture
from codyra_llm.domains.images.transform import center, random_crop
from codyra_llm.errors import UserError
from tests.conftest import shared_folder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def golden_clip() -> Path:
    return shared_folder("golden/clip", "no numbers of the official code for pictures")


def noise(*shape: int, seed: int = 0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, shape, numpy.uint8)


def test_pixels_are_those_of_the_official_transform(golden_clip: Path) -> None:
    arrays = numpy.load(golden_clip / "preprocess.npz")
    for name in [key.removesuffix(".image") for key in arrays if key.endswith(".image")]:
        image = open_picture(Picture(0, arrays[f"{name}.image"]))
        numpy.testing.assert_array_equal(center(image, 32, MEAN, STD), arrays[f"{name}.pixels32"])


def test_reference_draws_are_the_official_ones(golden_clip: Path) -> None:
    recorded = json.loads((golden_clip / "fewshot.json").read_text())
    for case in recorded["split_files"]:
        generator = random.Random(case["seed"])
        for read in case["reads"]:
            rows = recorded["splits"][read["split"]]["train"]
            drawn = reference_draw(
                [Picture(label, Path("ROOT") / path) for path, label, _ in rows], case["shots"], generator
            )
            assert [str(picture.source) for picture in drawn] == read["files"]
            assert [picture.label for picture in drawn] == read["labels"]
    for case in recorded["array_data"]:
        global_one = numpy.random.RandomState(case["seed"])
        assert reference_indices(recorded["array_labels"], case["shots"], global_one) == case["indices"]


def test_a_draw_depends_on_its_arguments_alone() -> None:
    pictures = [Picture(number % 3, Path(f"{number}.png")) for number in range(40)]
    drawn = draw(pictures, 4, 0, "pets")
    random.seed(1)
    assert drawn == draw(pictures, 4, 0, "pets")
    assert [picture.label for picture in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(drawn)) == 12
    # the draw of a class does not depend on the other classes of the domain
    assert draw([picture for picture in pictures if picture.label != 1], 4, 0, "pets") == drawn[:4] + drawn[8:]
    for other in (draw(pictures, 4, 1, "pets"), draw(pictures, 4, 0, "cars")):
        assert other != drawn


def test_a_class_with_fewer_pictures_than_shots_is_filled() -> None:
    pictures = [Picture(0, Path("a")), Picture(0, Path("b")), *[Picture(1, Path(str(number))) for number in range(9)]]
    drawn = draw(pictures, 5, 0, "pets")
    assert [picture.label for picture in drawn] == [0] * 5 + [1] * 5
    assert {picture.source for picture in drawn[:5]} <= {Path("a"), Path("b")}


def test_a_random_crop_is_decided_by_its_seed() -> None:
    image = open_picture(Picture(0, noise(48, 60, 3)))
    crops = [random_crop(image, 16, MEAN, STD, seed) for seed in (1, 1, 2, "1/0/2")]
    assert all(crop.shape == (3, 16, 16) and crop.dtype == numpy.float32 for crop in crops)
    numpy.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any()


@pytest.mark.parametrize("shape", [(8, 200), (200, 8), (1, 1)])
def test_a_crop_of_any_shape(shape: tuple[int, int]) -> None:
    image = open_picture(Picture(0, noise(*shape)))
    assert numpy.isfinite(random_crop(image, 8, MEAN, STD, 0)).all()
    assert center(image, 8, MEAN, STD).shape == (3, 8, 8)


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path) -> None:
    colours = Image.fromarray(noise(9, 7, 3))
    deep = (noise(9, 7).astype(numpy.uint16) << 8) + 255
    kinds = {
        "gray.png": Image.fromarray(noise(9, 7)),
        "deep.png": Image.fromarray(deep),
        "deep.tif": Image.fromarray(deep),
        "bits.png": Image.fromarray(noise(9, 7) > 127),
        "palette.png": colours.quantize(8),
        "alpha.png": colours.convert("RGBA"),
        "gray_alpha.png": colours.convert("LA"),
        "print.jpg": colours.convert("CMYK"),
        "print.tif": colours.convert("CMYK"),
        "page.webp": colours,
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        opened = open_picture(Picture(0, tmp_path / name))
        assert (opened.mode, opened.size) == ("RGB", (7, 9)), name
    first = numpy.asarray(open_picture(Picture(0, tmp_path / "deep.png")))
    numpy.testing.assert_array_equal(first[..., 0], noise(9, 7))


def test_of_an_animation_the_first_frame_counts_and_exif_does_not(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_picture(Picture(0, tmp_path / "moving.gif")).getpixel((0, 0)) == (255, 0, 0)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames[0].save(tmp_path / "turned.jpg", exif=turned)
    assert open_picture(Picture(0, tmp_path / "turned.jpg")).size == (6, 4)


def png_that_says(width: int, height: int) -> bytes:
    """Returns a PNG whose header states a size that its content does not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content) & 0xFFFFFFFF)
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Returns, by file name, the content of a bad picture and the expected part of its error."""
    return {
        "empty.png": (b"", "no picture"),
        "text.jpg": (b"<html>404 Not Found</html>", "no picture"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        "bomb.png": (png_that_says(12_000, 12_000), f"more than {LARGEST} pixels"),
        "huge.png": (png_that_says(100_000, 100_000), f"more than {LARGEST} pixels"),
        "narrow.png": (png_that_says(9_000, 3), "narrower"),
        "hollow.png": (png_that_says(300, 300), "cannot be decoded"),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_a_bad_picture_is_answered_in_one_line(name: str, tmp_path: Path) -> None:
    content, said = bad_pictures()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        open_picture(Picture(0, tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_a_truncated_picture_is_answered_in_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"cut.{kind}"
    Image.fromarray(noise(64, 64, 3)).save(file)
    whole = file.read_bytes()
    for kept in (3, len(whole) // 2):
        file.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=f"cut.{kind}"):
            open_picture(Picture(0, file))


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        for read in (open_picture, digest):
            with pytest.raises(UserError, match=str(path)):
                read(Picture(0, path))
    Image.fromarray(noise(4, 4).astype(numpy.float32)).save(tmp_path / "real.tif")
    with pytest.raises(UserError, match=r"real\.tif: holds floating-point"):
        open_picture(Picture(0, tmp_path / "real.tif"))


def test_digests_are_of_content(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(noise(4, 4)).save(tmp_path / name)
    assert digest(Picture(0, tmp_path / "a.png")) == digest(Picture(1, tmp_path / "b.png"))
    assert digest(Picture(0, noise(4, 9))) == digest(Picture(0, noise(4, 9)[:, :]))
    assert digest(Picture(0, noise(4, 9))) != digest(Picture(0, noise(4, 9).reshape(9, 4)))
