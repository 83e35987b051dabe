"""CLIP as a model: which modules get branches, what its folder must contain, and the errors for invalid ones."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig

from codyra_llm.adapter import CoDyRAConfig, inject
from codyra_llm.adapter.injection import describe_targets, find_targets
from codyra_llm.config import RunConfig, decisive, load_config
from codyra_llm.data.stream import TaskSpec, TaskStream
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.find import find_domain
from codyra_llm.domains.images.domain import IMAGES
from codyra_llm.domains.images.pixels import read_pixels
from codyra_llm.domains.images.readers import ImageDomain
from codyra_llm.domains.images.stream import image_task
from codyra_llm.domains.text.domain import TEXT
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_model, meta_model, original_weights
from codyra_llm.models.source import check_clip, open_source
from codyra_llm.planning.run_plan import plan_run
from tests.clip import clip_config, clip_run, color_domain, color_stream, save_clip
from tests.conftest import REPOSITORY

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_both_towers_of_a_vit_b_16_get_branches() -> None:
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    model = meta_model(CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=512))
    names = inject(model, CoDyRAConfig(rank=16, target_modules=("auto",)))
    assert len(names) == 144
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_425_984
    assert sum(name.startswith("vision_model.") for name in names) == 72
    assert "12 vision.q_proj" in describe_targets(names)
    assert "12 text.fc2" in describe_targets(names)


def test_targets_by_tower_and_by_name() -> None:
    model = meta_model(clip_config(600))
    assert len(find_targets(model, CoDyRAConfig(target_modules=("vision.q_proj",)))) == 2
    assert len(find_targets(model, CoDyRAConfig(target_modules=("q_proj", "fc1")))) == 8
    with pytest.raises(ValueError, match=r'"o_proj" matches no projection of this model; it has .*text\.out_proj'):
        find_targets(model, CoDyRAConfig(target_modules=("o_proj",)))


def test_the_temperature_is_held_as_a_buffer_and_stays_in_files(folder: Path) -> None:
    model: Any = load_model(open_source(str(folder), check=check_clip))
    assert "logit_scale" not in dict(model.named_parameters())
    assert "logit_scale" in dict(model.named_buffers())
    own: Any = CLIPModel.from_pretrained(folder)
    assert model.logit_scale == own.logit_scale
    assert model.state_dict().keys() == own.state_dict().keys()


def test_position_ids_in_an_old_file_do_not_matter(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    weights["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    read = original_weights(open_source(str(copy), check=check_clip))
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    found = torch.empty(weights[name].numel())
    read(name)(found, 0)
    assert torch.equal(found.view_as(weights[name]), weights[name])


def line_of(folder: Path, stream: TaskStream | None = None, **overrides: Any) -> str:
    with pytest.raises(UserError) as error:
        plan_run(clip_run(folder, folder.parent / "run", **overrides), ONE, stream or color_stream())
    (line,) = str(error.value).splitlines()
    return line


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps(content))


def test_a_folder_without_pixels(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    assert "holds no preprocessor_config.json, which says what pixels the model reads" in line_of(copy)


def test_pixels_of_any_version_of_transformers(copy: Path) -> None:
    source = open_source(str(copy), check=check_clip)
    for size in (16, {"shortest_edge": 16}, {"height": 16, "width": 16}):
        change(copy / "preprocessor_config.json", crop_size=size)
        assert read_pixels(source).size == 16


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"crop_size": 32}, "has pictures of 32 x 32 and 3 means, the model reads 16 x 16"),
        ({"image_mean": [0.5]}, "and 1 means"),
        ({"image_mean": None}, "it must have crop_size, image_mean and image_std"),
        ({"crop_size": {"height": 16, "width": 8}}, "it must have crop_size"),
        ({"crop_size": "many"}, "it must have crop_size"),
    ],
)
def test_pixels_that_are_not_the_model_s(copy: Path, values: dict[str, Any], problem: str) -> None:
    change(copy / "preprocessor_config.json", **values)
    assert problem in line_of(copy)


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (copy / "config.json").write_text(json.dumps(config))
    assert "gives the prompt 'a red photo.' no EOS token that the model knows, or tokens" in line_of(copy)


def test_dropout_would_make_two_readings_differ(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["attention_dropout"] = 0.1
    (copy / "config.json").write_text(json.dumps(config))
    assert "vision_config.attention_dropout is 0.1" in line_of(copy)


def test_siglip_is_refused() -> None:
    with pytest.raises(UserError, match="SiglipModel is not a CLIP model; give a folder of CLIPModel"):
        check_clip(SiglipConfig(architectures=["SiglipModel"]), "siglip")


def test_models_of_the_other_domain(folder: Path, tiny_folder: Path) -> None:
    assert "LlamaForCausalLM is not a CLIP model; give a folder of CLIPModel" in line_of(tiny_folder)
    with pytest.raises(UserError, match="CLIPModel is not a causal language model"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.quantization", "nf4"),
        ("data.chat_template", "auto"),
        ("retention.own_text", 1.0),
        ("evaluate.scores", "nll"),
        ("evaluate.demonstrations", 2),
        ("evaluate.divergence", True),
    ],
)
def test_settings_of_text(folder: Path, setting: str, value: Any) -> None:
    line = line_of(folder, **{setting: value})
    assert line.startswith(setting.replace("retention.own_text", "retention"))
    assert "has no meaning for images" in line


@pytest.mark.parametrize("method", ["agem", "gem", "routed", "codyra_weighed", "lora_null", "l2p", "dualprompt"])
def test_methods_that_need_a_language_model(folder: Path, method: str) -> None:
    line = line_of(folder, method=method)
    able = line.removeprefix(f"method {method}: cannot learn from images; use ").split(", ")
    assert {"lora", "replay", "lwf", "zscl", "inflora", "codyra_protected"} < set(able)
    assert method not in able


def test_a_method_of_images_alone() -> None:
    with pytest.raises(UserError, match="method zscl: cannot learn from text; use "):
        TEXT.settled(dataclasses.replace(RunConfig(), method="zscl"))


def test_pictures_have_no_split_to_validate_on(folder: Path) -> None:
    assert line_of(folder, **{"train.validation": "eval"}).startswith("train.validation eval: pictures have no split")


@pytest.mark.parametrize("shots", [1, 2])
def test_one_picture_of_one_class_teaches_nothing(folder: Path, shots: int) -> None:
    """With one picture, both parts of the loss and every gradient are zero; two pictures of the class give a loss."""
    warm = color_domain("warm")
    one = ImageDomain("one", warm.train[:2], warm.test[:1], ["red"], ["a red photo."])
    stream = TaskStream((image_task(one, TaskSpec("accuracy", steps=8), shots, 7),), "one", "1")
    config = clip_run(folder, folder.parent / "run")
    if shots == 1:
        with pytest.raises(UserError, match="task one: has one training picture, of its only class"):
            plan_run(config, ONE, stream)
        plan_run(config, ONE, stream, to_train=False)
    else:
        plan_run(config, ONE, stream)


@pytest.mark.parametrize(
    ("suites", "problem"),
    [
        (["mmlu"], "has no task 'mmlu'; it has planes, outlines"),
        (["land"], "land is learned by the run itself; name tasks that order does not have"),
        (["digits", "digits"], "digits is listed 2 times"),
    ],
)
def test_suites_are_other_tasks_of_the_file(suites: list[str], problem: str) -> None:
    settings = {"order": ["land"], "general.suites": suites, "adapter.target_modules": ["auto"]}
    with pytest.raises(UserError, match=f"general.suites: .*{problem}") as raised:
        plan_run(load_config(REPOSITORY / "configs" / "quickstart_clip.yaml", settings), ONE)
    assert "\n" not in str(raised.value)


def test_variants_belong_to_a_domain(folder: Path) -> None:
    assert IMAGES.settled(clip_run(folder, folder)).evaluate.scorer_variant == "union"
    within = clip_run(folder, folder, **{"evaluate.scorer_variant": "within_task"})
    assert IMAGES.settled(within) == within
    assert "evaluate.scorer_variant moram is one of text" in line_of(folder, **{"evaluate.scorer_variant": "moram"})
    with pytest.raises(UserError, match="scorer_variant union is one of images"):
        TEXT.settled(dataclasses.replace(RunConfig(), evaluate=IMAGES.settled(clip_run(folder, folder)).evaluate))


def test_the_domain_is_that_of_the_tasks(tmp_path: Path) -> None:
    assert find_domain(RunConfig()) is TEXT
    assert find_domain(RunConfig(), color_stream()) is IMAGES
    (tmp_path / "tasks.yaml").write_text("domain: sounds\ntasks: {}\n")
    with pytest.raises(UserError, match="domain is 'sounds'; there are text, images"):
        find_domain(dataclasses.replace(RunConfig(), task_file=str(tmp_path / "tasks.yaml")))


def test_steps_leave_runs_without_them_as_they_were(folder: Path) -> None:
    assert "train.steps" not in decisive(RunConfig())
    assert "steps" not in TaskSpec("accuracy").content
    config = clip_run(folder, folder, **{"train.steps": 3})
    assert decisive(config)["train.steps"] == 3
    assert [each.total_steps for each in plan_run(config, ONE, color_stream(8)).batches] == [3, 3]
    assert [each.total_steps for each in plan_run(clip_run(folder, folder), ONE, color_stream(8)).batches] == [8, 8]
