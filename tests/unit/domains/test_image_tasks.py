"""Task files of pictures: those of the project, prompts, and the errors for invalid ones."""

import json
from pathlib import Path

import numpy
import pytest
import yaml

from codyra_llm.config import load_config
from codyra_llm.data.stream import TaskSpec, TaskStream, read_task_file, resolve_order
from codyra_llm.domains.find import find_domain
from codyra_llm.domains.images.coop import LAYOUTS
from codyra_llm.domains.images.domain import IMAGES
from codyra_llm.domains.images.pictures import Picture
from codyra_llm.domains.images.readers import ImageDomain
from codyra_llm.domains.images.stream import image_task
from codyra_llm.domains.images.tasks import read_image_tasks
from codyra_llm.errors import UserError
from tests.clip import clip_run, save_clip
from tests.conftest import REPOSITORY, shared_folder

XTAIL, MTIL = (REPOSITORY / "tasks" / name / f"{name}.yaml" for name in ("xtail", "mtil"))


def test_the_benchmarks_are_whole() -> None:
    ten, eleven = read_image_tasks(XTAIL), read_image_tasks(MTIL)
    assert set(eleven.specs) - set(ten.specs) == {"CIFAR100"}
    assert {spec.reader for spec in eleven.specs.values()} == set(LAYOUTS)
    assert {spec.shots for spec in ten.specs.values()} == {16} and {spec.shots for spec in eleven.specs.values()} == {5}
    for stream, order in ((ten, "order1"), (eleven, "order1"), (eleven, "order2")):
        assert sorted(resolve_order(order, stream.orders, stream.specs, "")) == sorted(stream.specs)


@pytest.mark.parametrize(
    ("file", "variant", "means"),
    [(XTAIL, "union", (58.5, 63.2, 71.3, 79.2)), (MTIL, "within_task", (65.3, 70.1, 73.3, 78.0))],
)
def test_published_rows_have_their_published_means(file: Path, variant: str, means: tuple[float, ...]) -> None:
    stream = read_image_tasks(file)
    assert stream.zero_shot(variant) == stream.published[0]
    assert {row.variant for row in stream.published} == {variant}
    for row, mean in zip(stream.published, means, strict=True):
        assert sum(row.scores.values()) / len(row.scores) == pytest.approx(mean, abs=0.06)
        missing = [name for name in stream.orders["order1"] if name not in row.scores]
        assert missing == (["Aircraft"] if row.measure == "transfer" else [])


def test_prompts_are_those_that_were_recorded() -> None:
    recorded = json.loads((shared_folder("golden/clip", "no recorded prompts") / "tokens.json").read_text())["prompts"]
    specs = read_image_tasks(MTIL).specs
    for task, name in (("Aircraft", "707-320"), ("DTD", "banded"), ("EuroSAT", "Annual Crop Land"),
                       ("MNIST", "0 - zero"), ("Food101", "baby_back_ribs"), ("Flowers", "colt's foot"),
                       ("Cars", "2012 Audi S5 Coupe"), ("Pets", "american_bulldog")):  # fmt: skip
        assert specs[task].prompt(name) in recorded
    assert specs["CIFAR100"].prompt("sweet_pepper") == "a photo of a sweet pepper."
    assert specs["Cars"].prompt("a {} b") == "a photo of a a {} b."


ENTRY = {"reader": "folders", "template": "a {}."}
GENERATE = {"function": "world.py:pictures", "train": 4, "test": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "a photo."}, "template: .* needs {} once"),
        ({"template": "{} and {}"}, "template: .* needs {} once"),
        ({"template": "a {0}."}, "template: .* needs {} once"),
        ({"template": "a {}\n"}, "template: .* needs {} once"),
        ({"template": 3}, "task one: template: Input should be a valid string, found 3"),
        ({"reader": "imagenet"}, "task one: reader: Input should be 'folders'.*'sun397', found 'imagenet'"),
        ({"underscores": "drop"}, "task one: underscores: Input should be 'keep' or 'space'"),
        ({"shots": 0}, "task one: shots: .*greater than or equal to 1, found 0"),
        ({"steps": 2.5}, "task one: steps: "),
        ({"scorer": "accuracy"}, 'task one: unknown key "scorer"; a task has reader'),
        ({"name": "two"}, 'task one: unknown key "name"; a task has reader, .*, generate$'),
        ({"reader": "generated"}, "task one: generate: goes with reader: generated"),
        ({"generate": GENERATE}, "task one: generate: goes with reader: generated"),
        ({"reader": "generated", "generate": {**GENERATE, "function": "os:system"}}, "task one: generate.function: "),
        ({"reader": "generated", "generate": {**GENERATE, "function": "../a.py:f"}}, "task one: generate.function: "),
        ({"reader": "generated", "generate": GENERATE}, "world.py:pictures is code; .*allow_code"),
    ],
)
def test_a_bad_entry(change: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"domain": "images", "tasks": {"one": {**ENTRY, **change}}}))
    with pytest.raises(UserError, match=said):
        read_image_tasks(tmp_path / "tasks.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domain": "text"}, 'would say "domain: images"'),
        ({"tasks": []}, '"tasks" of task names'),
        ({"tasks": {"a/b": ENTRY}}, "cannot name a folder"),
        ({"tasks": {"one": None}}, "task one: an entry is a mapping"),
        ({"templates": {}}, 'unknown key "templates"'),
        ({"orders": {"back": "one"}}, "back must be a list"),
        ({"published": [{"method": "LoRA"}]}, "published: 0.measure: "),
        ({"published": {"method": "LoRA"}}, "published: "),
    ],
)
def test_a_bad_file(change: dict[str, object], said: str, tmp_path: Path) -> None:
    content = {"domain": "images", "tasks": {"one": ENTRY}, **change}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=said) as error:
        read_image_tasks(tmp_path / "tasks.yaml")
    assert str(tmp_path / "tasks.yaml") in str(error.value)


def test_a_published_row_of_an_unknown_task(tmp_path: Path) -> None:
    row = {"method": "m", "measure": "last", "variant": "union", "source": "s", "scores": {"two": 3.0}}
    content = {"domain": "images", "tasks": {"one": ENTRY}, "published": [row]}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match='published: m: unknown task "two"; there are one'):
        read_image_tasks(tmp_path / "tasks.yaml")


def test_code_that_is_allowed(tmp_path: Path) -> None:
    entry = {"reader": "generated", "template": "a {}.", "generate": GENERATE}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"domain": "images", "tasks": {"one": entry}}))
    spec = read_image_tasks(tmp_path / "tasks.yaml", allow_code=True).specs["one"]
    assert (spec.name, spec.folder) == ("one", tmp_path)
    assert "folder" not in spec.content and spec.content["generate"]["train"] == 4


@pytest.mark.parametrize(("domain", "said"), [("sounds", "'sounds'"), (["images"], r"\['images'\]"), (None, "None")])
def test_a_domain_that_there_is_not(domain: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"domain": domain, "tasks": {"one": ENTRY}}))
    with pytest.raises(UserError, match=f"domain is {said}; there are text, images"):
        find_domain(load_config(None, {"task_file": str(tmp_path / "tasks.yaml")}))


def test_a_reader_of_text_says_that_a_task_file_is_of_pictures() -> None:
    with pytest.raises(UserError, match="is a task file of domain 'images'; one of text is needed here"):
        read_task_file(XTAIL)


@pytest.mark.parametrize(
    "setting",
    [
        {"data.max_answer_length": 5},
        {"data.long_answers": "drop"},
        {"evaluate.max_new_tokens": 8},
        {"evaluate.scores": "nll"},
        {"data.max_prompt_length": 9},
    ],
)
def test_settings_of_text_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(setting))}: has no meaning for images"):
        IMAGES.settled(load_config(None, {"task_file": str(XTAIL), **setting}))


@pytest.mark.parametrize(
    ("classes", "template", "said"),
    [
        (["Dog", "cat", "dog"], "a {}.", "the prompts of classes 'Dog' and 'dog' have the same tokens"),
        (["dog", "dog "], "a {}.", "'dog' and 'dog ' have the same tokens"),
        (["caf\u00e9", "cafe\u0301"], "{}", "have the same tokens"),
        (["dog", "cat"], "a very small photo of one certain {}.", "has 33 tokens, the model reads 32"),
    ],
)
def test_prompts_that_the_model_cannot_tell_or_read(
    classes: list[str], template: str, said: str, tmp_path: Path
) -> None:
    pictures = [Picture(label, numpy.zeros((8, 8, 3), numpy.uint8)) for label in range(len(classes))]
    domain = ImageDomain("one", pictures, pictures, classes, [template.format(name) for name in classes])
    stream = TaskStream((image_task(domain, TaskSpec("accuracy"), None, 1),), "mine", "1")
    config = clip_run(save_clip(tmp_path / "model"), tmp_path / "run")
    with pytest.raises(UserError, match=f"task one: .*{said}"):
        IMAGES.rows(config, IMAGES.open(config), stream)
