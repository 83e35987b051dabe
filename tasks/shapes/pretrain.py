"""Pretrains the small CLIP of shapes from scratch: a CLIPModel of 0.63 million parameters and its own tokenizer.

    python tasks/shapes/pretrain.py --output_dir tasks/shapes/model

Two stages, each with its own warmup and cosine decay of the learning rate: only compositional pictures and captions,
then 30 % pictures like those of the ten domains with coarse captions. The pictures of a step are a function of its
number, so a run that was stopped resumes from `--checkpoint` with the same results. Takes about five minutes on one
idle CPU core; the weights are saved in float16.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from captions import DOMAIN_WORDS, compositional, domain_like
from tokenizers import pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from world import CLASSES, SIDE, Array
from zero_shot import MEAN, STD, pixels, table, zero_shot

SEED, CONTEXT, ROWS = 0, 24, 96
PEAKS, WARMUP = (2.5e-3, 1e-3), 100
DOMAIN_SHARE = 0.3


def make_tokenizer() -> CLIPTokenizer:
    """Trains a byte-pair encoding on the world's captions.

    The vocabulary has CLIP's order: bytes, bytes that end a word, merges, special tokens. The EOS token has the highest
    id, so every version of transformers finds it.
    """
    captions = compositional(10000, np.random.default_rng([SEED, 9]))[1]
    words = [
        *(text.format("") for texts in DOMAIN_WORDS.values() for text in texts),
        *(name for of in CLASSES.values() for name in of),
    ]
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([*captions, *words * 50], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Returns a CLIPModel with random weights: four vision layers on 8 x 8 patches, two text layers, context 24."""
    shared = {"num_attention_heads": 4, "projection_dim": 64}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=64))


def batch_of(stage: int, step: int) -> tuple[Array, list[str], list[str]]:
    """Returns pictures, captions and groups of a step; a group is a caption or a domain (see `contrastive_loss`)."""
    rng = np.random.default_rng([SEED, stage, step])
    strange = round(ROWS * DOMAIN_SHARE) * stage
    pictures, texts = compositional(ROWS - strange, rng)
    groups = texts
    if strange:
        more, words, domains = domain_like(strange, rng)
        pictures, texts, groups = np.concatenate([pictures, more]), texts + words, texts + domains
    return pictures, texts, groups


def contrastive_loss(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Array, texts: list[str], groups: list[str]
) -> torch.Tensor:
    """Returns InfoNCE of pictures and captions, in both directions; pairs of the same group are no negatives."""
    scores = model(
        **tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels(pictures)
    ).logits_per_image
    numbers, own = torch.from_numpy(np.unique(groups, return_inverse=True)[1]), torch.arange(len(texts))
    alike = (numbers[:, None] == numbers) & (own[:, None] != own)
    scores = scores.masked_fill(alike, -torch.inf)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def pretrain(stages: tuple[int, int], output: Path, checkpoint: Path | None) -> None:
    """Trains for the given steps of each stage; saves the model, the tokenizer and the image processor's settings."""
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    done = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    plan = [(stage, step) for stage, steps in enumerate(stages) for step in range(steps)]
    for number, (stage, step) in enumerate(plan[done:], done + 1):
        for group in optimizer.param_groups:
            group["lr"] = PEAKS[stage] * _share_of_peak(step, stages[stage])
        loss = contrastive_loss(model, tokenizer, *batch_of(stage, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if number % 100 == 0:
            print(f"step {number} of {len(plan)}, loss {loss.item():.3f}", flush=True)
        if number % 300 == 0:
            print(table(zero_shot(model, tokenizer, 10, SEED)), flush=True)
        if checkpoint and number % 300 == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": number}, checkpoint)
    save(model, tokenizer, output)


def save(model: CLIPModel, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Writes the files that `CLIPModel.from_pretrained` and `CLIPImageProcessor.from_pretrained` read, in float16."""
    model.to(torch.float16).save_pretrained(output)
    tokenizer.backend_tokenizer.no_padding()  # the last batch turned it on, and it would be saved
    tokenizer.save_pretrained(output)
    form = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
    }  # fmt: skip
    (output / "preprocessor_config.json").write_text(json.dumps(form, indent=2) + "\n")


def _share_of_peak(step: int, steps: int) -> float:
    """Returns the learning rate as a share of its peak: linear warmup, and cosine decay to a hundredth."""
    return min(1, (step + 1) / WARMUP) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(1200, 700), help="steps of the two stages")
    parser.add_argument("--checkpoint", type=Path, help="a file that the state is kept in, and taken from")
    options = parser.parse_args()
    pretrain(tuple(options.steps), options.output_dir, options.checkpoint)
