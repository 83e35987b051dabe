"""Any content of a folder of pictures is read correctly, or refused with one line that names it."""

import io
import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codyra_llm.domains.images.arrays import read_cifar100, read_mnist
from codyra_llm.domains.images.pictures import Picture, digest, open_picture
from codyra_llm.domains.images.readers import read_domain
from codyra_llm.domains.images.tasks import DomainSpec, read_image_tasks
from codyra_llm.domains.images.transform import center, random_crop
from codyra_llm.files import read_yaml
from tests.conftest import REPOSITORY
from tests.fuzz.outcome import outcome, thorough
from tests.fuzz.strategies import files_like
from tests.unit.domains.conftest import save_aircraft, save_cifar100, save_mnist, save_split_set

SPLIT = {
    split: [[f"{name}/{number}.jpg", label, name] for label, name in enumerate(("a", "b")) for number in (0, 1)]
    for split in ("train", "val", "test")
}
XTAIL = read_yaml(REPOSITORY / "tasks" / "xtail" / "xtail.yaml")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (16, 24, 3), numpy.uint8)).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in FORMATS}


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws the bytes of a file that is truncated or has some bytes changed."""
    changed = bytearray(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
    for _ in range(draw(st.integers(0, 4))):
        if changed:
            changed[draw(st.integers(0, min(len(changed), draw(st.sampled_from([64, 10**9]))) - 1))] = draw(
                st.integers(0, 255)
            )
    return bytes(changed)


@thorough
@given(st.sampled_from(FORMATS).flatmap(lambda kind: damaged_bytes(ENCODED[kind])))
def test_a_picture(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "picture.jpg"
        file.write_bytes(content)
        image, line = outcome(lambda: open_picture(Picture(0, file)))
        assert image is None or image.mode == "RGB"
        assert line is None or str(file) in line
        if image:
            assert center(image, 8, MEAN, STD).shape == random_crop(image, 8, MEAN, STD, 0).shape == (3, 8, 8)
        assert len(digest(Picture(0, file))) == 32


@thorough
@given(files_like(SPLIT))
def test_a_split_file(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        save_split_set(root / "eurosat", "split_zhou_EuroSAT.json", "2750")
        file = root / "eurosat" / "split_zhou_EuroSAT.json"
        for path, _, _ in SPLIT["train"]:
            (root / "eurosat" / "2750" / str(path)).parent.mkdir(exist_ok=True)
            (root / "eurosat" / "2750" / str(path)).write_bytes(ENCODED["JPEG"])
        file.write_bytes(content)
        domain, _ = outcome(lambda: read_domain(DomainSpec(reader="eurosat", template="a {}", name="e"), root))
        for picture in (*domain.train, *domain.test) if domain else ():
            assert 0 <= picture.label < len(domain.classes)
            assert picture.source.resolve().is_relative_to(root.resolve())


@thorough
@given(files_like(XTAIL))
def test_a_task_file(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tasks.yaml"
        file.write_bytes(content)
        stream, _ = outcome(lambda: read_image_tasks(file))
        for spec in stream.specs.values() if stream else ():
            assert spec.prompt("cat").count("cat") >= 1
            json.dumps(spec.content)


@thorough
@given(st.data())
def test_arrays(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        save_mnist(root / "mnist", packed=data.draw(st.booleans()))
        save_cifar100(root / "cifar-100-python")
        for file in sorted((root / "mnist").iterdir())[:2] + sorted((root / "cifar-100-python").iterdir()):
            file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))
        found, _ = outcome(lambda: read_mnist(root / "mnist", "test"))
        assert found is None or len(found[0]) == len(found[1])
        outcome(lambda: read_cifar100(root / "cifar-100-python"))


@thorough
@given(
    st.recursive(st.integers() | st.binary(max_size=4), lambda inner: st.lists(inner, max_size=3)), st.integers(0, 5)
)
def test_a_pickle_of_anything(content: Any, protocol: int) -> None:
    with TemporaryDirectory() as folder:
        save_cifar100(Path(folder) / "cifar")
        values = {b"data": content, b"fine_labels": content, b"fine_label_names": content}
        for name in ("meta", "train"):
            (Path(folder) / "cifar" / name).write_bytes(pickle.dumps(values, protocol=protocol))
        _, line = outcome(lambda: read_cifar100(Path(folder) / "cifar"))
        assert line


@pytest.mark.parametrize("file", ["variants.txt", "images_variant_train.txt", "images_variant_test.txt"])
def test_lines_of_aircraft(file: str, tmp_path: Path) -> None:
    save_aircraft(tmp_path / "fgvc_aircraft")

    @thorough
    @given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
    def spoiled(content: bytes) -> None:
        (tmp_path / "fgvc_aircraft" / file).write_bytes(content)
        outcome(lambda: read_domain(DomainSpec(reader="aircraft", template="a {}", name="a"), tmp_path))

    spoiled()
