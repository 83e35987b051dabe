"""Raw text as examples: documents packed for continued pretraining, and windows over them for bits per byte."""

import math
from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

from codyra_llm.data.ids import begin_mark, text_ids

SCORER = "bits_per_byte"  # the scorer that marks a task as raw text


def packed(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields documents, concatenated with an EOS token after each, in blocks of `length` tokens: (the first, the rest).

    The first token of a block is the last of the block before, so that every token but the very first is learned once.
    """
    begin, marks = _prefix(tokenizer), begin_mark(tokenizer)
    block = [begin]
    for text in texts:
        ids = [*marks, *text_ids(tokenizer, text), tokenizer.eos_token_id]
        remaining = ids[1:] if marks and block == [begin] else ids  # the first block already has the BOS token
        while remaining:
            room = length - len(block)
            block += remaining[:room]
            remaining = remaining[room:]
            if len(block) == length:
                yield block[:1], block[1:]
                block = block[-1:]
    if len(block) > 1:
        yield block[:1], block[1:]


def windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yields a document in windows of `length` tokens, (what is read, what is scored); each token is scored once.

    The first window reads the BOS token, the others the last token of the window before, like
    `get_rolling_token_windows` of lm-evaluation-harness with a context of one token.
    """
    ids, before = text_ids(tokenizer, text), _prefix(tokenizer)
    for first in range(0, len(ids), length - 1):
        window = ids[first : first + length - 1]
        yield [before], window
        before = window[-1]


def bits_per_byte(nats: float, texts: Iterable[str]) -> float:
    """Returns the negative log-likelihood of texts in bits per UTF-8 byte; lower is better."""
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def as_percent(bits: float) -> float:
    """Converts bits per byte to a score: the (geometric) mean probability of a byte, in percent."""
    return 100 * 2.0**-bits if math.isfinite(bits) else 0.0


def as_bits(percent: float) -> float:
    """Converts a score to bits per byte; inverse of `as_percent`."""
    return -math.log2(percent / 100) if percent > 0 else math.inf


def _prefix(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id before the first token: BOS, or EOS if the tokenizer has no BOS token."""
    bos: int | None = tokenizer.bos_token_id
    return tokenizer.eos_token_id if bos is None else bos
