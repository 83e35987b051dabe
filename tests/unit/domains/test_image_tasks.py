"""Task files of pictures: those that come with the project, prompts, and what is wrong with one."""

import json
from pathlib import Path

import pytest
import yaml

from codyra_llm.data.stream import resolve_order
from codyra_llm.domains.images.coop import LAYOUTS
from codyra_llm.domains.images.tasks import read_image_tasks
from codyra_llm.errors import UserError
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
        ({"name": "two"}, 'task one: unknown key "name"'),
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
