"""The generated world of pictures: deterministic, in ten domains; and the zero-shot accuracy of its CLIP."""

import json
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from transformers import CLIPModel, CLIPTokenizer

from tests.conftest import REPOSITORY

SHAPES = REPOSITORY / "tasks" / "shapes"
MODULES = ("world", "captions", "zero_shot")


@pytest.fixture(scope="module")
def shapes() -> Iterator[dict[str, ModuleType]]:
    """The modules next to the task file, which import each other by name as scripts do."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(SHAPES)
    for name in MODULES:
        patch.delitem(sys.modules, name, raising=False)
    yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)
    patch.undo()


def test_there_are_ten_domains_of_96_classes_as_the_task_file_has_them(shapes: dict[str, ModuleType]) -> None:
    classes = shapes["world"].CLASSES
    stream = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    assert list(stream["tasks"]) == list(classes) == stream["orders"]["order1"]
    assert sum(map(len, classes.values())) == 96
    assert len({name for names in classes.values() for name in names}) == 96
    assert sorted(stream["orders"]["order2"]) == sorted(classes)
    assert all(task["template"].count("{}") == 1 for task in stream["tasks"].values())


def test_rows_are_a_function_of_domain_split_and_seed(shapes: dict[str, ModuleType]) -> None:
    rows = shapes["world"].shapes_rows
    for domain, names in shapes["world"].CLASSES.items():
        pictures, labels, listed = rows(domain, "train", 3, 7)
        assert pictures.shape == (3 * len(names), 32, 32, 3) and pictures.dtype == np.uint8 and listed == names
        assert np.bincount(labels).tolist() == [3] * len(names)
        assert np.array_equal(pictures, rows(domain, "train", 3, 7)[0])
        assert not np.array_equal(pictures, rows(domain, "train", 3, 8)[0])
        assert not np.array_equal(pictures, rows(domain, "test", 3, 7)[0])
    with pytest.raises(KeyError):
        rows("trains", "train", 1, 0)
    with pytest.raises(ValueError):
        rows("planes", "validation", 1, 0)


def test_pictures_of_a_class_look_alike(shapes: dict[str, ModuleType]) -> None:
    pictures, labels, _ = shapes["world"].shapes_rows("land", "train", 20, 0)
    colors = pictures.mean((1, 2))
    centers = np.stack([colors[labels == label].mean(0) for label in range(labels.max() + 1)])
    nearest = np.abs(colors[:, None] - centers).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.8


def test_captions_vary_and_those_of_domains_name_no_class(shapes: dict[str, ModuleType]) -> None:
    pictures, texts = shapes["captions"].compositional(200, np.random.default_rng(0))
    assert len(pictures) == len(texts) == 200 and len(set(texts)) > 150
    pictures, texts, domains = shapes["captions"].domain_like(300, np.random.default_rng(0))
    assert len(pictures) == len(texts) == len(domains) == 300
    for text, domain in zip(texts, domains, strict=True):
        told = {word.strip(".,") for word in text.split()}
        assert not told & shapes["captions"].TAKEN[domain] - {"a", "of", "car", "wing", "engine", "petal", "ear"}, text


def test_the_model_loads_alone_and_is_better_than_chance(shapes: dict[str, ModuleType]) -> None:
    model = CLIPModel.from_pretrained(SHAPES / "model").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(SHAPES / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) < 700_000
    form = json.loads((SHAPES / "model" / "preprocessor_config.json").read_text())
    assert form["crop_size"]["height"] == model.config.vision_config.image_size == 32
    assert form["image_mean"] == [shapes["zero_shot"].MEAN] * 3 and form["image_std"] == [shapes["zero_shot"].STD] * 3
    end = model.config.text_config.eos_token_id
    assert tokenizer("a red circle")["input_ids"][-1] == end == tokenizer.eos_token_id == len(tokenizer) - 1
    found = shapes["zero_shot"].zero_shot(model, tokenizer, count=5, seed=1)
    union, within = np.mean(list(found.values()), axis=0)
    assert union > 15 and within > 30  # chance is 1.0 and 10.6


def test_padding_does_not_change_what_a_prompt_says(shapes: dict[str, ModuleType]) -> None:
    model = CLIPModel.from_pretrained(SHAPES / "model").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(SHAPES / "model")
    longest = shapes["zero_shot"].templates()["planes"].format("two engine swept wing")
    with torch.no_grad():
        alone = model.get_text_features(**tokenizer("a van", return_tensors="pt"))
        among = model.get_text_features(**tokenizer(["a van", longest], padding=True, return_tensors="pt"))
    alone, among = (getattr(output, "pooler_output", output) for output in (alone, among))
    torch.testing.assert_close(alone[0], among[0], rtol=1e-4, atol=1e-5)
