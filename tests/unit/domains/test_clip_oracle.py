"""Features, loss and a run of three tasks against what the official code gives (its arrays lie beside the project)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig

from codyra_llm.adapter import CoDyRAConfig, ProximalAdamW, ThresholdSchedule, inject, merge, prune
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.learning_rate import cosine_factor
from codyra_llm.domains.images.contrastive import contrastive_loss, image_features, text_features
from codyra_llm.models.load import meta_model
from tests.conftest import shared_folder

PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
OTHERS = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "logit_scale": "logit_scale",
}


@pytest.fixture(scope="module")
def oracles() -> Path:
    return shared_folder("golden/clip", "no numbers of the official code to compare with")


def layer_name(official: str) -> str:
    """That of a layer in transformers' CLIPModel."""
    tower, _, rest = official.partition("transformer.resblocks.")
    number, _, part = rest.partition(".")
    for theirs, ours in PARTS.items():
        part = ours + part.removeprefix(theirs) if part.startswith(theirs) else part
    part = part.replace("attn.", "self_attn.") if part.startswith("attn.") else part
    return f"{'vision' if tower else 'text'}_model.encoder.layers.{number}.{part}"


def state_of(arrays: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a model under transformers' names."""
    state: dict[str, torch.Tensor] = {}
    for key in (key for key in arrays if key.startswith(prefix)):
        name, value = key.removeprefix(prefix), torch.tensor(arrays[key])
        if name in ("text_projection", "visual.proj"):
            state["text_projection.weight" if name[0] == "t" else "visual_projection.weight"] = value.T
        elif ".in_proj_" in name:
            start, _, kind = name.rpartition(".in_proj_")
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[f"{layer_name(f'{start}.{part}_proj')}.{kind}"] = rows
        elif "resblocks" in name:
            state[layer_name(name)] = value
        else:
            ours = next(k for k in sorted(OTHERS, key=len, reverse=True) if name == k or name.startswith(k + "."))
            state[OTHERS[ours] + name.removeprefix(ours)] = value
    return state


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
