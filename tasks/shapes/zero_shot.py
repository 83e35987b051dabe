"""Prints the zero-shot accuracy of a CLIP model on the test pictures of the ten domains.

    python tasks/shapes/zero_shot.py --model_dir tasks/shapes/model

Accuracy is in percent, over the classes of all domains (union) and over the domain's own classes (within the task),
with one prompt for each class.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import CLIPModel, CLIPTokenizer
from world import CLASSES, shapes_rows

FOLDER = Path(__file__).parent
MEAN, STD = 0.5, 0.5


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """Returns pictures uint8 [n, 32, 32, 3] as the model's input: normalized float32 [n, 3, 32, 32]."""
    return torch.from_numpy((pictures.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def templates() -> dict[str, str]:
    """Returns the prompt template of each domain, with {} for the class, from the task file."""
    return {
        name: task["template"] for name, task in yaml.safe_load((FOLDER / "shapes.yaml").read_text())["tasks"].items()
    }


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, count: int, seed: int) -> Mapping[str, tuple[float, float]]:
    """Returns the accuracy (union, within the task) of each domain, with `count` test pictures of each class."""
    prompts = [template.format(name) for domain, template in templates().items() for name in CLASSES[domain]]
    owners = np.array([domain for domain in templates() for _ in CLASSES[domain]])
    texts = _unit(model.get_text_features(**tokenizer(prompts, padding=True, return_tensors="pt")))
    out = {}
    for domain in templates():
        pictures, labels, _ = shapes_rows(domain, "test", count, seed)
        scores = (_unit(model.get_image_features(pixels(pictures))) @ texts.T).numpy()
        own = np.flatnonzero(owners == domain)
        union, within = scores.argmax(1) == own[labels], scores[:, own].argmax(1) == labels
        out[domain] = (100 * float(union.mean()), 100 * float(within.mean()))
    return out


def _unit(output: torch.Tensor) -> torch.Tensor:
    """Returns unit features [n, d]; some versions of transformers return them as `pooler_output`."""
    features = getattr(output, "pooler_output", output)
    return features / features.norm(dim=-1, keepdim=True)


def table(found: Mapping[str, tuple[float, float]]) -> str:
    """Returns a table with one line for each domain, and the mean over domains."""
    mean = tuple(np.mean(list(found.values()), axis=0))
    lines = [f"{name:<10}{union:7.1f}{within:8.1f}" for name, (union, within) in [*found.items(), ("mean", mean)]]
    return "\n".join([f"{'':<10}{'union':>7}{'within':>8}", *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, default=FOLDER / "model")
    parser.add_argument("--count", type=int, default=20, help="test pictures a class, as in shapes.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = CLIPModel.from_pretrained(options.model_dir).float().eval()
    print(table(zero_shot(model, CLIPTokenizer.from_pretrained(options.model_dir), options.count, options.seed)))
