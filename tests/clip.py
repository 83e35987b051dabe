"""A tiny random CLIP model folder with its tokenizer, and picture domains made of noise around a color."""

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from codyra_llm.config import RunConfig, load_config
from codyra_llm.data.stream import TaskSpec, TaskStream
from codyra_llm.domains.images.pictures import Picture
from codyra_llm.domains.images.readers import ImageDomain
from codyra_llm.domains.images.stream import image_task

SIZE, CONTEXT = 16, 32
COLORS = {
    "warm": {"red": (220, 30, 30), "orange": (240, 140, 20), "yellow": (230, 220, 40)},
    "cold": {"blue": (30, 40, 220), "green": (30, 180, 60), "violet": (150, 40, 190), "cyan": (30, 200, 220)},
}


def clip_tokenizer() -> CLIPTokenizer:
    """Returns a tokenizer without merges: a token for each byte, and one for each byte that ends a word."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CONTEXT)


def clip_config(vocabulary: int, **changes: Any) -> CLIPConfig:
    """Returns the configuration of two towers of two layers: vision of width 32, text of width 24."""
    both = {"num_hidden_layers": 2, "hidden_act": "quick_gelu", "projection_dim": 20}
    text = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "vocab_size": vocabulary, **both}
    text |= {"max_position_embeddings": CONTEXT, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": SIZE, **both}
    return CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 8} | changes, projection_dim=20)


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Writes the model, its tokenizer and preprocessor_config.json; returns the folder."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    model = CLIPModel(clip_config(len(tokenizer))).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "position" not in name:
            parameter.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"crop_size": {"height": SIZE, "width": SIZE}, "size": {"shortest_edge": SIZE}, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**pixels, "image_std": [0.25] * 3, "image_processor_type": "CLIPImageProcessor"})
    )
    return folder


def color_domain(name: str, shots: int = 6, tests: int = 5) -> ImageDomain:
    """Returns a domain of pictures of 20 x 18 pixels whose classes are colors."""
    draws = numpy.random.default_rng(sum(map(ord, name)))

    def pictures(count: int) -> list[Picture]:
        return [
            Picture(label, (numpy.array(color) + draws.integers(-25, 25, (20, 18, 3))).clip(0, 255).astype(numpy.uint8))
            for label, color in enumerate(COLORS[name].values())
            for _ in range(count)
        ]

    classes = list(COLORS[name])
    return ImageDomain(name, pictures(shots), pictures(tests), classes, [f"a {each} photo." for each in classes])


def color_stream(steps: int = 8, names: tuple[str, ...] = ("warm", "cold")) -> TaskStream:
    """Returns a stream whose tasks are the color domains."""
    spec = TaskSpec("accuracy", steps=steps)
    return TaskStream(tuple(image_task(color_domain(name), spec, 4, 7) for name in names), "colors", "1")


def clip_run(model: Path, output: Path, **overrides: object) -> RunConfig:
    """Returns the configuration of a run that takes seconds."""
    return load_config(
        None,
        {
            "model.name_or_path": str(model),
            "output_dir": str(output),
            "adapter.rank": 4,
            "adapter.target_modules": ["auto"],
            "train.global_batch_size": 8,
            "train.per_device_train_batch_size": 8,
            "train.learning_rate": 0.01,
            "train.max_grad_norm": 0,
            "tracking": [],
            **overrides,
        },
    )
