"""Encodes a text alone as token ids; rows of every kind are built from these."""

from transformers import PreTrainedTokenizerBase


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of a text, without the special tokens that the tokenizer would add."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def begin_mark(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns [BOS] if the tokenizer adds it before a text (Llama, Gemma), else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
