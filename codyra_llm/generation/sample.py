"""Sampling of texts from a model, given only the BOS token and one random token."""

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.data.encode import padding_id
from codyra_llm.distributed.ranks import Ranks, all_gather
from codyra_llm.generation.generate import end_tokens
from codyra_llm.generation.kv_cache import Context
from codyra_llm.models.head import answer_logits

BATCH = 32  # texts that are generated together


@torch.inference_mode()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: str,
    ranks: Ranks,
    synced: bool = False,
) -> list[list[int]]:
    """Samples texts of at most `length` tokens at temperature 1, the same on every rank.

    A text begins with the BOS token, if the tokenizer has one, and a token drawn from the vocabulary (special tokens
    excluded), and ends after an EOS token. Random draws depend on (seed, number of the text) alone.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        count: number of texts.
        length: largest number of tokens of a text.
        seed: of the draws.
        ranks: the ranks that share the work.
        synced: whether all ranks must take part in each forward pass; each rank then samples all texts.
    """
    batches = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    mine = batches if synced else batches[ranks.rank :: ranks.size]
    own = {number: text for batch in mine for number, text in _write(model, tokenizer, batch, length, seed).items()}
    every = own if synced else {number: text for of_rank in all_gather(own) for number, text in of_rank.items()}
    return [every[number] for number in range(count)]


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, numbers: Sequence[int], length: int, seed: str
) -> dict[int, list[int]]:
    draws = [torch.Generator().manual_seed(_seed(f"{seed}/{number}")) for number in numbers]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    texts = [[*begin, int(ordinary[torch.randint(len(ordinary), (1,), generator=draw)])] for draw in draws]
    ends, live = end_tokens(model, tokenizer), list(range(len(texts)))
    context, hidden = Context.of(model, texts, length, padding_id(tokenizer), in_step=True)
    while live and len(texts[live[0]]) < length:
        chances = answer_logits(model, hidden).softmax(-1).cpu()
        for row in live:
            texts[row].append(int(torch.multinomial(chances[row], 1, generator=draws[row])))
        live = [row for row in live if texts[row][-1] not in ends]
        if live and len(texts[live[0]]) < length:
            hidden = context.read([[text[-1]] for text in texts])[:, -1]
    return dict(zip(numbers, texts, strict=True))


def _seed(text: str) -> int:
    return random.Random(text).getrandbits(63)
