"""Features, loss and a run of three tasks compared with the official code, whose arrays are in the shared folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, merge, prune
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.domains.images.contrastive import contrastive_loss
from codyra_llm.domains.images.pixels import read_pixels
from codyra_llm.domains.images.towers import image_features, text_features
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_model, meta_model
from codyra_llm.models.open_clip import names_of_transformers
from codyra_llm.models.source import check_clip, open_source
from tests.clip import clip_tokenizer
from tests.conftest import shared_folder

WEIGHTS = "open_clip_model.safetensors"

PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}


@pytest.fixture(scope="module")
def oracles() -> Path:
    return shared_folder("golden/clip", "no numbers of the official code to compare with")


def layer_name(official: str) -> str:
    """Returns the name in transformers' CLIPModel of a layer with an official name."""
    tower, _, rest = official.partition("transformer.resblocks.")
    number, _, part = rest.partition(".")
    for theirs, ours in PARTS.items():
        part = ours + part.removeprefix(theirs) if part.startswith(theirs) else part
    part = part.replace("attn.", "self_attn.") if part.startswith("attn.") else part
    return f"{'vision' if tower else 'text'}_model.encoder.layers.{number}.{part}"


def weights_of(arrays: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a model under the official names."""
    return {key.removeprefix(prefix): torch.tensor(arrays[key]) for key in arrays if key.startswith(prefix)}


def state_of(arrays: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a model under transformers' names."""
    return names_of_transformers(weights_of(arrays, prefix))


def build(shape: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    both = {"projection_dim": shape["embed_dim"], "hidden_act": "quick_gelu"}
    text = {"hidden_size": shape["text_width"], "intermediate_size": 4 * shape["text_width"], **both}
    text |= {"num_attention_heads": shape["text_heads"], "num_hidden_layers": shape["text_layers"]}
    text |= {"vocab_size": shape["vocab_size"], "max_position_embeddings": shape["context_length"], "eos_token_id": 2}
    width = shape["vision_width"]
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": shape["vision_layers"], **both}
    vision |= {"num_attention_heads": width // shape["vision_head_width"], "image_size": shape["image_size"]}
    vision |= {"patch_size": shape["patch_size"]}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape["embed_dim"])
    model: Any = meta_model(config).to_empty(device="cpu").eval()
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_the_loss_and_its_gradients(oracles: Path, case: int) -> None:
    arrays, known = np.load(oracles / "loss.npz"), json.loads((oracles / "loss.json").read_text())[case]
    images, every = (torch.tensor(arrays[f"{case}.{name}"]) for name in ("out", "embeddings"))
    labels, seen = torch.tensor(arrays[f"{case}.labels"]) - known["seen"], known["seen"]
    images.requires_grad_()
    texts = every[seen:].clone().requires_grad_()
    scale = torch.tensor(known["log_scale"]).exp()
    of_images, of_texts = contrastive_loss(images, texts, labels, seen, scale)
    assert of_images.item() == pytest.approx(known["image_ce"], abs=1e-5)
    assert of_texts.item() == pytest.approx(known["text_ce"], abs=1e-5)
    (of_images + of_texts).backward()
    np.testing.assert_allclose(images.grad, arrays[f"{case}.d_out"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(texts.grad, arrays[f"{case}.d_embeddings"][seen:], atol=1e-5, rtol=0)
    assert not arrays[f"{case}.d_embeddings"][:seen].any(), "of earlier prompts, nothing but the number matters"


def test_features_plain_and_with_branches(oracles: Path) -> None:
    arrays, info = dict(np.load(oracles / "small_clip.npz")), json.loads((oracles / "small_clip.json").read_text())
    model = build(info["config"], state_of(arrays, "w/"))
    images, tokens = torch.tensor(arrays["images"]), torch.tensor(arrays["tokens"])

    def close(suffix: str) -> None:
        for name, found in (("image", image_features(model, images)), ("text", text_features(model, tokens))):
            whole = torch.tensor(arrays[f"{name}_features{suffix}"])
            expected = whole / whole.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    with torch.no_grad():
        close("")
        config = CoDyRAConfig(rank=info["rank"], target_modules=("auto",), threshold_mode="reference")
        names = inject(model, config)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == info["trainable"]
        assert sorted(names) == sorted(map(layer_name, info["lora_layers"]))
        for official in info["lora_layers"]:
            layer: Any = model.get_submodule(layer_name(official))
            for part in ("A", "B", "gate"):
                getattr(layer, part).copy_(torch.tensor(arrays[f"lora/{official}.{part}"]))
        close("_lora")


@pytest.fixture
def open_clip(oracles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the small model in open_clip's format."""
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "cache"))
    arrays, info = dict(np.load(oracles / "small_clip.npz")), json.loads((oracles / "small_clip.json").read_text())
    folder, shape = tmp_path / "open_clip", info["config"]
    folder.mkdir()
    save_file({name: weight.contiguous() for name, weight in weights_of(arrays, "w/").items()}, folder / WEIGHTS)
    content = {
        "model_cfg": {
            "embed_dim": shape["embed_dim"],
            "quick_gelu": shape["quick_gelu"],
            "vision_cfg": {
                "image_size": shape["image_size"],
                "layers": shape["vision_layers"],
                "width": shape["vision_width"],
                "patch_size": shape["patch_size"],
                "head_width": shape["vision_head_width"],
            },
            "text_cfg": {
                "context_length": shape["context_length"],
                "vocab_size": shape["vocab_size"],
                "width": shape["text_width"],
                "heads": shape["text_heads"],
                "layers": shape["text_layers"],
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    clip_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_folder_of_open_clip(oracles: Path, open_clip: Path) -> None:
    source = open_source(str(open_clip), check=check_clip)
    assert read_pixels(source).content == [16, [0.5] * 3, [0.25] * 3]
    arrays, model = np.load(oracles / "small_clip.npz"), load_model(source)
    found = image_features(model, torch.tensor(arrays["images"])), text_features(model, torch.tensor(arrays["tokens"]))
    for ours, name in zip(found, ("image_features", "text_features"), strict=True):
        whole = torch.tensor(arrays[name])
        torch.testing.assert_close(ours, whole / whole.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    assert open_source(str(open_clip), check=check_clip).path == source.path, "it is made once"


def test_a_folder_of_open_clip_that_is_unfit(open_clip: Path) -> None:
    config, weights = (open_clip / name for name in ("open_clip_config.json", WEIGHTS))
    content = json.loads(config.read_text())
    content["model_cfg"]["vision_cfg"]["layers"] = 3
    config.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be made a CLIPModel"):
        open_source(str(open_clip), check=check_clip)
    del content["model_cfg"]["text_cfg"]
    config.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be made a CLIPModel: .*text_cfg"):
        open_source(str(open_clip), check=check_clip)
    weights.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be made a CLIPModel"):
        open_source(str(open_clip), check=check_clip)
    weights.unlink()
    with pytest.raises(UserError, match=r"and no open_clip_model\.safetensors; save the weights as safetensors"):
        open_source(str(open_clip), check=check_clip)


def test_three_tasks_of_the_official_run(oracles: Path) -> None:
    arrays, info = dict(np.load(oracles / "run.npz")), json.loads((oracles / "run.json").read_text())
    model, arguments = build(info["config"], state_of(arrays, "w0/")), info["args"]
    config = CoDyRAConfig(
        rank=arguments["rank"],
        target_modules=("auto",),
        threshold_mode="reference",
        threshold_strength=arguments["max_kappa"],
        dense_fraction=arguments["dense_iters"],
        ramp_levels=arguments["lambda_num"],
    )
    official = list(info["live_ranks"][0])
    starts, total = [0], arguments["iterations"]
    for task in info["tasks"]:
        starts.append(starts[-1] + task["classes"])

    def tensor(key: str) -> torch.Tensor:
        return torch.tensor(arrays[key])

    for number, task in enumerate(info["tasks"]):
        name, scale = task["name"], model.logit_scale.exp()
        inject(model, config)
        layers: dict[str, Any] = {each: model.get_submodule(layer_name(each)) for each in official}
        for each, layer in layers.items():
            layer.A.data, layer.gate.data = tensor(f"{name}/{each}.A0"), tensor(f"{name}/{each}.gate0")
            np.testing.assert_allclose(layer.base.weight, arrays[f"{name}/{each}.W"], atol=5e-5)
        optimizer = ProximalAdamW.for_model(model, config, lr=arguments["lr"], betas=(0.9, 0.9999), weight_decay=0.0)
        schedule = ThresholdSchedule(config, total)
        images, labels, tokens = (tensor(f"{name}.{part}") for part in ("images", "labels", "tokens"))
        batches = [range(at, min(at + info["batch"], len(images))) for at in range(0, len(images), info["batch"])]
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = arguments["lr"] * cosine_factor(step, total, 0)
            for each, layer in layers.items():
                if (key := f"{name}@{step}/{each}") in arrays:
                    np.testing.assert_allclose(layer.gate.detach(), arrays[key], atol=1e-5)
            schedule.apply(optimizer, step)
            rows = list(batches[step % len(batches)])
            found = image_features(model, images[rows]), text_features(model, tokens)
            of_images, of_texts = contrastive_loss(*found, labels[rows], starts[number], scale)
            for loss, key in ((of_images, "CE_i"), (of_texts, "CE_t")):
                assert loss.item() == pytest.approx(info["scalars"][f"{name}/{key}"][step], abs=1e-5)
            optimizer.zero_grad()
            (of_images + of_texts).backward()
            optimizer.step()
        for each, layer in layers.items():
            for part in ("A", "B"):
                np.testing.assert_allclose(getattr(layer, part).detach(), arrays[f"{name}/{each}.{part}"], atol=5e-5)
            np.testing.assert_allclose(layer.gate.detach(), arrays[f"{name}/{each}.gate"], atol=1e-5)
            assert int(layer.gate.count_nonzero()) == info["live_ranks"][number][each]
        prune(model)
        merge(model)
        check_scores(model, arrays, info, starts, number)
    assert not list(gated_layers(model))


@torch.no_grad()
def check_scores(model: Any, arrays: Any, info: dict[str, Any], starts: list[int], number: int) -> None:
    texts = torch.cat([text_features(model, torch.tensor(arrays[f"{task['name']}.tokens"])) for task in info["tasks"]])
    for column, task in enumerate(info["tasks"]):
        images = image_features(model, torch.tensor(arrays[f"{task['name']}.test_images"]))
        labels = torch.tensor(arrays[f"{task['name']}.test_labels"]) + starts[column]
        logits = images @ texts.T
        own = logits[:, starts[column] : starts[column + 1]].argmax(-1) + starts[column]
        for told, key in ((logits.argmax(-1), "accuracy_union"), (own, "accuracy_within_task")):
            assert 100 * float((told == labels).double().mean()) == pytest.approx(info[key][number][column], abs=1e-6)
