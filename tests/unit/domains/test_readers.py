"""Readers of picture domains: each data set of the benchmark under each of its names, users' own data, bad copies."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest

from codyra_llm.domains.images.arrays import read_pickle
from codyra_llm.domains.images.coop import LAYOUTS, read_split_file
from codyra_llm.domains.images.pictures import open_picture
from codyra_llm.domains.images.readers import READERS, ImageDomain, read_domain
from codyra_llm.domains.images.tasks import DomainSpec, Generator, Reader
from codyra_llm.errors import UserError
from tests.unit.domains.conftest import ALIASES, CLASSES, SETS, save_cifar100, save_idx, save_mnist, save_picture

SPLIT_FILE = "split_zhou_EuroSAT.json"


def read(data: Path, reader: Any, **options: Any) -> ImageDomain:
    options = {"template": "a {}.", "name": "mine", **options}
    return read_domain(DomainSpec(reader=reader, **options), data)


def refused(said: str, data: Path, reader: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(data, reader, **options)
    assert len(str(error.value)) < 600


def test_every_reader_is_known() -> None:
    assert set(READERS) | set(LAYOUTS) == set(get_args(Reader))
    assert set(SETS) == set(LAYOUTS)


@pytest.mark.parametrize("reader", SETS)
def test_a_data_set_is_read(reader: str, tmp_path: Path) -> None:
    SETS[reader](tmp_path)
    domain = read(tmp_path, reader)
    assert len(domain.classes) == len(domain.prompts) == 1 + max(picture.label for picture in domain.train)
    assert {picture.label for picture in domain.test} == set(range(len(domain.classes)))
    assert domain.prompts[0] == f"a {domain.classes[0]}."
    for picture in (domain.train[0], domain.test[-1]):
        assert open_picture(picture).mode == "RGB"
    if LAYOUTS[reader].split_file:
        assert tuple(domain.classes) == CLASSES and len(domain.train) == 6 and len(domain.test) == 3


@pytest.mark.parametrize("reader", ALIASES)
def test_a_data_set_under_another_name(reader: str, tmp_path: Path) -> None:
    ALIASES[reader](tmp_path / "other")
    SETS[reader](tmp_path / "usual")
    other, usual = (read(tmp_path / name, reader) for name in ("other", "usual"))
    assert other.classes == usual.classes
    for split in ("train", "test"):
        assert [picture.label for picture in getattr(other, split)] == [p.label for p in getattr(usual, split)]


def test_names_of_classes_are_the_data_sets_own(tmp_path: Path) -> None:
    for reader in ("mnist", "cifar100", "aircraft", "food101"):
        SETS[reader](tmp_path)
    assert read(tmp_path, "mnist").classes[:2] == ["0 - zero", "1 - one"]
    assert read(tmp_path, "aircraft").classes == ["707-320", "A340-500", "Spitfire Mk 1"]
    assert read(tmp_path, "cifar100", underscores="space").prompts[1] == "a sweet pepper."
    assert read(tmp_path, "food101").prompts[0] == "a alpha_one."
    assert read(tmp_path, "food101", underscores="space").classes[0] == "alpha one"


def test_pixels_of_array_data(tmp_path: Path) -> None:
    save_cifar100(tmp_path / "cifar-100-python")
    rows = numpy.random.default_rng(6).integers(0, 256, (6, 3072), numpy.uint8)
    first = read(tmp_path, "cifar100").train[0].source
    numpy.testing.assert_array_equal(first, rows[0].reshape(3, 32, 32).transpose(1, 2, 0))
    save_mnist(tmp_path / "mnist", packed=True)
    digits = numpy.random.default_rng(20).integers(0, 256, (20, 28, 28), numpy.uint8)
    numpy.testing.assert_array_equal(read(tmp_path, "mnist").train[3].source, digits[3])


@pytest.mark.parametrize("reader", LAYOUTS)
def test_all_names_of_an_absent_data_set_are_told(reader: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, reader)
    assert all(name in str(error.value) for name in (*LAYOUTS[reader].folders, LAYOUTS[reader].source))


@pytest.mark.parametrize("reader", LAYOUTS)
def test_each_missing_part_is_told(reader: str, tmp_path: Path) -> None:
    layout = LAYOUTS[reader]
    SETS[reader](tmp_path)
    folder = tmp_path / layout.folders[0]
    for names in (layout.pictures, *layout.parts, (layout.split_file,)):
        if names[0] not in ("", "."):
            os.rename(folder / names[0], folder / "away")
            refused(f"{folder}: {names[0]}.* missing; pictures come from", tmp_path, reader)
            os.rename(folder / "away", folder / names[0])
    read(tmp_path, reader)


def test_the_more_complete_of_two_folders_is_read(tmp_path: Path) -> None:
    (tmp_path / "oxford_pets").mkdir()
    ALIASES["pets"](tmp_path)
    assert read(tmp_path, "pets").place == str(tmp_path / "oxford-iiit-pet")
    shutil.copytree(tmp_path / "oxford-iiit-pet", tmp_path / "elsewhere" / "animals")
    assert len(read(tmp_path, "pets", path="elsewhere/animals").train) == 6


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    SETS["eurosat"](tmp_path)
    (tmp_path / "eurosat" / "2750" / "gamma" / "0.jpg").unlink()
    refused(r"train: 1 of 6 pictures are not there, as .*gamma/0\.jpg", tmp_path, "eurosat")


BAD_SPLITS: dict[str, tuple[Any, str]] = {
    "a list": ([], "a split file is {train, val, test}"),
    "no train": ({"test": [["a.jpg", 0, "a"]]}, '"train" is None'),
    "an empty split": ({"train": [["a.jpg", 0, "a"]], "test": []}, '"test" is'),
    "a short row": ({"train": [["a.jpg", 0]], "test": []}, "train row 1: is"),
    "a label as text": ({"train": [["a.jpg", "0", "a"]], "test": []}, "train row 1: is"),
    "a truth as label": ({"train": [["a.jpg", True, "a"]], "test": []}, "train row 1: is"),
    "a negative label": ({"train": [["a.jpg", -1, "a"]], "test": []}, "train row 1: is"),
    "labels from one": ({"train": [["a.jpg", 1, "a"]], "test": [["b.jpg", 1, "a"]]}, "no row has label 0"),
    "a gap": ({"train": [["a.jpg", 0, "a"], ["b.jpg", 2, "c"]], "test": [["a.jpg", 0, "a"]]}, "no row has label 1"),
    "a huge label": ({"train": [["a.jpg", 0, "a"], ["b.jpg", 10**9, "c"]], "test": [["a.jpg", 0, "a"]]}, "label 1"),
    "two names": ({"train": [["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "test": []}, "row 2: label 0 is 'b', and 'a'"),
    "a class of test alone": ({"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 1, "b"]]}, "test row 1: class 1"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_a_bad_split_file(case: str, tmp_path: Path) -> None:
    content, said = BAD_SPLITS[case]
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as error:
        read_split_file(tmp_path / "split.json")
    assert str(tmp_path / "split.json") in str(error.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "", ".", "a\\b.jpg", "a\x00.jpg"])
def test_a_path_that_leads_elsewhere(path: str, tmp_path: Path) -> None:
    SETS["eurosat"](tmp_path)
    file = tmp_path / "eurosat" / SPLIT_FILE
    content = json.loads(file.read_text())
    content["train"][1][0] = path
    file.write_text(json.dumps(content))
    refused("train row 2: .* no path below", tmp_path, "eurosat")


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    SETS["eurosat"](tmp_path)
    file = tmp_path / "eurosat" / SPLIT_FILE
    content = json.loads(file.read_text())
    content["train"][1][0] = "n" * 300 + "/a.jpg"
    file.write_text(json.dumps(content))
    refused("1 of 6 pictures are not there", tmp_path, "eurosat")
    for path in ("n" * 300, "nul\0inside"):
        refused("has no folder", tmp_path, "eurosat", path=path)
        refused("no such folder", tmp_path, "folders", path=path)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images_variant_train.txt", "0000000 707-321\n", "images_variant_train.txt line 1: .*variants.txt"),
        ("images_variant_test.txt", "", "test has no pictures"),
        ("variants.txt", "707-320\nA340-500\nSpitfire Mk 1\nYak-42\n", "class 'Yak-42' has no picture in train"),
        ("variants.txt", "707-320\nA340-500\nSpitfire Mk 1\n707-320\n", "have one name"),
    ],
)
def test_bad_aircraft_files(file: str, text: str, said: str, tmp_path: Path) -> None:
    SETS["aircraft"](tmp_path)
    (tmp_path / "fgvc_aircraft" / file).write_text(text)
    refused(said, tmp_path, "aircraft")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


BAD_MNIST: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (lambda raw: cut(raw / "train-images-idx3-ubyte"), "says 20 x 28 x 28 values"),
    "swapped": (
        lambda raw: shutil.copy(raw / "train-labels-idx1-ubyte", raw / "train-images-idx3-ubyte"),
        "train-images-idx3-ubyte: is no IDX file",
    ),
    "one label less": (
        lambda raw: save_idx(raw / "t10k-labels-idx1-ubyte", numpy.zeros(9, numpy.uint8)),
        "has 9 labels for the 10 pictures",
    ),
    "label": (
        lambda raw: save_idx(raw / "t10k-labels-idx1-ubyte", numpy.arange(10, dtype=numpy.uint8) + 3),
        "t10k-labels-idx1-ubyte row 10: label 12",
    ),
    "empty": (lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b""), "is no IDX file"),
    "damaged gz": (
        lambda raw: (raw / "t10k-labels-idx1-ubyte").rename(raw / "t10k-labels-idx1-ubyte.gz"),
        "t10k-labels-idx1-ubyte.gz: .*fetch it again",
    ),
}


@pytest.mark.parametrize("case", BAD_MNIST)
def test_bad_idx_files(case: str, tmp_path: Path) -> None:
    spoil, said = BAD_MNIST[case]
    save_mnist(tmp_path / "MNIST" / "raw")
    spoil(tmp_path / "MNIST" / "raw")
    refused(said, tmp_path, "mnist")


class Runs:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("echo run > run_by_a_pickle",)


BAD_PICKLES: dict[str, tuple[bytes, str]] = {
    "code": (pickle.dumps({b"data": Runs()}, protocol=2), "names 'posix.system' to be run"),
    "objects": (pickle.dumps(numpy.array([Runs(), None]), protocol=2), "to be run|unsigned bytes"),
    "integers": (pickle.dumps({b"data": numpy.arange(9)}, protocol=2), "an array of b?'i8'"),
    "no dict": (pickle.dumps([1], protocol=2), "not a dict"),
    "no pickle": (b"<html></html>", "not read"),
    "empty": (b"", "not read"),
    "cut off": (pickle.dumps({b"data": numpy.zeros((2, 3072), numpy.uint8)}, protocol=2)[:-50], "not read"),
    "a distant memo": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "holds 1, not a dict"),
    "no pictures": (pickle.dumps({b"fine_labels": [1]}, protocol=2), '"data" is no array'),
    "no labels": (pickle.dumps({b"data": numpy.zeros((2, 3072), numpy.uint8)}, protocol=2), "no list of 2 labels"),
    "a label": (
        pickle.dumps({b"data": numpy.zeros((2, 3072), numpy.uint8), b"fine_labels": [0, 3]}, protocol=2),
        "row 2: label 3",
    ),
    "another width": (pickle.dumps({b"data": numpy.zeros((2, 3073), numpy.uint8)}, protocol=2), '"data" is no array'),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickles(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = BAD_PICKLES[case]
    save_cifar100(tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    refused(said, tmp_path, "cifar100")
    assert not (tmp_path / "run_by_a_pickle").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_of_columns_first(protocol: int, tmp_path: Path) -> None:
    data = numpy.asfortranarray(numpy.arange(6, dtype=numpy.uint8).reshape(2, 3))
    (tmp_path / "file").write_bytes(pickle.dumps({b"data": data}, protocol=protocol))
    numpy.testing.assert_array_equal(read_pickle(tmp_path / "file")[b"data"].values, data)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """The format of CIFAR100's files: Python 2 `str` are bytes, and the dtype of an array has a state."""
    (tmp_path / "file").write_bytes(
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02K\x03\x86q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03"
        b"U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x06\x00\x00\x00\x00\x01\xff\xfe\x7f\x80tb"
        b"U\x0bfine_labelsq\x0f]q\x10(K\x01K\x00eu."
    )
    content = read_pickle(tmp_path / "file")
    assert content[b"fine_labels"] == [1, 0]
    numpy.testing.assert_array_equal(content[b"data"].values, [[0, 1, 255], [254, 127, 128]])


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name in ("train/dog/1.png", "train/dog/2.JPG", "train/a cat/1.png", "test/dog/1.png"):
        save_picture(tmp_path / "mine" / name, seed=len(name))
    for name in ("train/.DS_Store", "train/dog/.DS_Store", "train/dog/notes.txt"):
        (tmp_path / "mine" / name).write_text("no picture")
    domain = read(tmp_path, "folders")
    assert domain.classes == ["a cat", "dog"] and [picture.label for picture in domain.train] == [0, 1, 1]
    assert domain.test[0].label == 1
    assert len(domain.notes) == 1 and "notes.txt" in domain.notes[0]
    save_picture(tmp_path / "mine" / "test" / "wolf" / "1.png")
    refused("test/wolf: .* never learned", tmp_path, "folders")
    refused("no such folder; .* holds train/CLASS", tmp_path, "folders", path="yours")
    shutil.rmtree(tmp_path / "mine" / "test")
    refused("test: No such file", tmp_path, "folders")
    (tmp_path / "mine" / "test").mkdir()
    refused("test has no pictures", tmp_path, "folders")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    SETS["eurosat"](tmp_path)
    shutil.rmtree(tmp_path / "eurosat" / "2750")
    (tmp_path / "eurosat" / "2750").write_text("")
    refused("6 of 6 pictures are not there", tmp_path, "eurosat")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train").write_text("")
    refused("train: Not a directory", tmp_path, "folders")


def test_an_empty_class_folder(tmp_path: Path) -> None:
    for name in ("train/dog/1.png", "test/dog/2.png"):
        save_picture(tmp_path / "mine" / name)
    (tmp_path / "mine" / "train" / "cat").mkdir()
    refused("class 'cat' has no picture in train", tmp_path, "folders")


def test_one_class_is_told(tmp_path: Path) -> None:
    for name in ("train/dog/1.png", "test/dog/2.png"):
        save_picture(tmp_path / "mine" / name, seed=len(name))
    (note,) = read(tmp_path, "folders").notes
    assert "has one class, so that within_task is 100" in note


def test_names_that_make_one_prompt(tmp_path: Path) -> None:
    for name in ("train/big_dog/1.png", "train/big dog/1.png", "test/big dog/2.png"):
        save_picture(tmp_path / "mine" / name)
    assert len(read(tmp_path, "folders").classes) == 2
    refused("classes 0 and 1 have one name", tmp_path, "folders", underscores="space")


def test_a_table_of_paths_and_classes(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("a.png", "sub/b.png", "c.png"):
        save_picture(folder / name)
    (folder / "train.csv").write_text("path,class\na.png,dog\nsub/b.png,cat\n")
    (folder / "test.csv").write_text("path,class\nc.png,cat\na.png,dog\n")
    domain = read(tmp_path, "csv")
    assert domain.classes == ["cat", "dog"] and [picture.label for picture in domain.train] == [1, 0]
    assert domain.notes == [f"{folder}: task mine: 1 of 2 test pictures are also in train"]
    for text, said in (
        ("path,class\nc.png,wolf\n", "test.csv row 1: class 'wolf' has no row in"),
        ("path,class\nd.png,cat\n", "test.csv: 1 of 1 pictures are not there"),
        ("path,class\n../d.png,cat\n", "test.csv row 1: .* no path below"),
        ("path,label\nc.png,cat\n", 'test.csv row 1: .*"class"'),
        ("path,class\nc.png,\n", "test.csv row 1"),
        ("path,class\nc.png,cat\na.png,dog\nc.png,dog\n", "test.csv row 3: 'c.png' is 'dog', and 'cat' in row 1"),
        ("", "test.csv"),
    ):
        (folder / "test.csv").write_text(text)
        refused(said, tmp_path, "csv")
    (folder / "test.csv").unlink()
    refused("test", tmp_path, "csv")


GENERATOR = """
import numpy
def squares(domain, split, count, seed):
    labels = [number % 2 for number in range(2 * count)]
    generator = numpy.random.default_rng([seed, len(domain), split == "test"])
    return generator.integers(0, 256, (2 * count, 8, 8, 3), numpy.uint8), labels, ["red square", "blue square"]
def floats(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3)), [0, 1], ["a", "b"]
def labels(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3), numpy.uint8), [0, 2], ["a", "b"]
def no_labels(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3), numpy.uint8), None, ["a", "b"]
def shares(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3), numpy.uint8), [0, 0.7], ["a", "b"]
def numbers(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3), numpy.uint8), numpy.array([0, 1]), [7, 8]
def turned(domain, split, count, seed):
    return numpy.zeros((2, 8, 8, 3), numpy.uint8), [0, 1], ["a", "b"] if split == "train" else ["b", "a"]
def fails(domain, split, count, seed):
    raise RuntimeError("no")
"""


def test_generated_pictures(tmp_path: Path) -> None:
    (tmp_path / "world.py").write_text(GENERATOR)

    def options(function: str) -> dict[str, Any]:
        return {"folder": tmp_path, "generate": Generator(f"world.py:{function}", train=4, test=2, seed=3)}

    domain = read(tmp_path, "generated", **options("squares"))
    assert (len(domain.train), len(domain.test), domain.classes[0]) == (8, 4, "red square")
    again = read(tmp_path, "generated", **options("squares"))
    numpy.testing.assert_array_equal(domain.test[3].source, again.test[3].source)
    for function, said in (
        ("floats", "uint8"),
        ("labels", "label outside"),
        ("fails", "RuntimeError: no"),
        ("absent", "no such function"),
        ("no_labels", "failed: TypeError"),
        ("shares", "failed: TypeError"),
        ("numbers", "class name 7, which is no text"),
        ("turned", "other classes for test"),
    ):
        refused(said, tmp_path, "generated", **options(function))
    (tmp_path / "world.py").write_text("import no_such_module_anywhere")
    refused("world.py: cannot be imported", tmp_path, "generated", **options("squares"))
