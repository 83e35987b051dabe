"""Conversion of an open_clip folder (open_clip_config.json, safetensors, tokenizer) to a CLIPModel folder, done once.

The key mapping is exact: in_proj is the concatenation of q, k and v along rows; projections are transposed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from codyra_llm.errors import UserError, reason
from codyra_llm.files import cache_folder, read_json, replace_folder, sha256

CONFIG, WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "model.safetensors")
LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
OTHERS = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def is_open_clip(folder: Path) -> bool:
    """True if a folder is in open_clip's format and not also in that of transformers."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def folder_of_open_clip(folder: Path) -> Path:
    """Returns the CLIPModel folder of an open_clip folder, in the cache folder; converts it if it does not exist.

    Raises:
        UserError: a file is missing or damaged, or CLIPModel cannot represent the model.
    """
    where = f"model.name_or_path {folder}"
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise UserError(f"{where}: holds {CONFIG}, and no {WEIGHTS[0]}; save the weights as safetensors")
    named = hashlib.sha256((sha256(files[0]) + sha256(folder / CONFIG)).encode()).hexdigest()
    made = cache_folder() / "open_clip" / named
    if made.is_dir():
        return made
    content = read_json(folder / CONFIG)
    try:
        state, config = names_of_transformers(load_file(files[0])), _config(content["model_cfg"])
        _check_shapes(state, config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        made.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(made) as scratch:
            save_file(state, scratch / "model.safetensors", {"format": "pt"})
            config.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            pixels = json.dumps(_pixels(content), indent=1)
            (scratch / "preprocessor_config.json").write_text(pixels + "\n", encoding="utf-8")
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{where}: cannot be made a CLIPModel: {reason(error)}; give a folder of CLIPModel") from None
    return made


def _check_shapes(state: Mapping[str, torch.Tensor], config: CLIPConfig) -> None:
    """Raises ValueError if weights do not match a configuration; the check allocates no weights."""
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in CLIPModel(config).state_dict().items()}
    found = {name: weight.shape for name, weight in state.items()}
    if wrong := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
        raise ValueError(f"{min(wrong)} is not the same in {CONFIG} and in the weights")


def names_of_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights with the names and shapes of CLIPModel.

    Raises:
        KeyError: a weight does not belong to a CLIP of two transformers.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name in TRANSPOSED:
            found[TRANSPOSED[name]] = value.T.contiguous()
        elif "transformer.resblocks." in name:
            found |= _of_layer(name, value)
        elif name != "attn_mask":  # not a weight
            found[OTHERS[name]] = value
    return found


def _of_layer(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    tower, _, rest = name.partition("transformer.resblocks.")
    number, _, part = rest.partition(".")
    start = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        return {
            f"{start}.self_attn.{each}_proj.{kind}": rows.contiguous()
            for each, rows in zip("qkv", value.chunk(3), strict=True)
        }
    module, _, kind = part.rpartition(".")
    return {f"{start}.{LAYER[module]}.{kind}": value}


def _config(shape: Mapping[str, Any]) -> CLIPConfig:
    """Returns the CLIPConfig for open_clip's `model_cfg`."""
    vision, text = shape["vision_cfg"], shape["text_cfg"]
    both = {"projection_dim": shape["embed_dim"], "hidden_act": "quick_gelu" if shape.get("quick_gelu") else "gelu"}
    return CLIPConfig(
        architectures=["CLIPModel"],
        projection_dim=shape["embed_dim"],
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "eos_token_id": 2,  # with 2, transformers pools at the position of the largest id, as open_clip does
            **both,
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "num_hidden_layers": vision["layers"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **both,
        },
    )


def _pixels(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of preprocessor_config.json; mean and deviation default to OpenAI's, as in open_clip."""
    side, given = content["model_cfg"]["vision_cfg"]["image_size"], content.get("preprocess_cfg", {})
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "image_mean": given.get("mean", [0.48145466, 0.4578275, 0.40821073]),
        "image_std": given.get("std", [0.26862954, 0.26130258, 0.27577711]),
        "resample": 3,
    }
