"""Text as token ids, by itself: what every kind of row is made of."""

from transformers import PreTrainedTokenizerBase


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without the special tokens that a tokenizer adds of its own accord."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def begin_mark(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] where the tokenizer puts one before a text of its own accord (Llama, Gemma), else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
