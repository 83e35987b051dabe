"""Pretrains nano from scratch on texts of its world: a Llama of 2.2 million parameters and a tokenizer of 2048 tokens.

    python tasks/nano/pretrain.py --output_dir tasks/nano/model

Takes about a quarter of an hour on two CPU cores. Weights are saved in bfloat16.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import texts

VOCABULARY, CONTEXT, ROWS = 2048, 128, 16
PEAK, WARMUP = 3e-3, 50


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the world's texts; it puts the BOS token before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(texts("tokenizer"), 20000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns a Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def blocks(tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Yields batches [ROWS, CONTEXT] of concatenated texts, each of which ends with the EOS token."""
    ids: list[int] = []
    for text in texts("pretraining"):
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= ROWS * CONTEXT:
            yield torch.tensor(ids[: ROWS * CONTEXT]).view(ROWS, CONTEXT)
            ids = ids[ROWS * CONTEXT :]


def pretrain(steps: int, output: Path) -> None:
    """Trains for `steps` steps and saves the model and the tokenizer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_peak(step, steps))
    for step, batch in enumerate(itertools.islice(blocks(tokenizer), steps), 1):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}, {step * ROWS * CONTEXT:,} tokens, loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def _share_of_peak(step: int, steps: int) -> float:
    """Returns the learning rate as a share of its peak: linear warmup, and cosine decay to a twentieth."""
    return min(1, (step + 1) / WARMUP) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    pretrain(options.steps, options.output_dir)
