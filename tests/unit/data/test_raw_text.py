"""Raw text: every token of packed documents is learned once; windows equal lm-evaluation-harness's; bits per byte."""

import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from codyra_llm.data.raw_text import as_bits, as_percent, bits_per_byte, packed, windows
from codyra_llm.data.stream import TaskSpec, TaskStream
from codyra_llm.errors import UserError

TEXTS = ["One two three.", "A longer document, of several sentences. They go on.", "é", "x" * 80]


@pytest.mark.parametrize("family", ["llama-sentencepiece", "gemma", "byte-bpe", "byte-bpe-with-begin-mark"])
@pytest.mark.parametrize("length", [2, 7, 64, 1000])
def test_every_token_is_learned_once(
    tokenizers_by_family: dict[str, PreTrainedTokenizerBase], family: str, length: int
) -> None:
    tokenizer = tokenizers_by_family[family]
    blocks = list(packed(tokenizer, TEXTS, length))
    eos, marks = tokenizer.eos_token_id, tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    documents = [
        [*([tokenizer.bos_token_id] if marks else []), *tokenizer(text, add_special_tokens=False)["input_ids"], eos]
        for text in TEXTS
    ]
    stream = list(chain.from_iterable(documents))
    learned = list(chain.from_iterable(answer for _, answer in blocks))
    assert learned == (stream[1:] if marks else stream)
    before = [blocks[0][0][0], *learned]
    places = [0, *(sum(len(answer) for _, answer in blocks[: number + 1]) for number in range(len(blocks)))]
    assert [prompt[0] for prompt, _ in blocks] == [before[place] for place in places[:-1]], "the token before is read"
    assert blocks[0][0][0] == tokenizer.bos_token_id
    assert {len(answer) for _, answer in blocks[:-1]} <= {length - 1}


@given(st.text(min_size=1, max_size=60), st.integers(2, 12))
def test_windows_are_those_of_the_harness(
    tokenizers_by_family: dict[str, PreTrainedTokenizerBase], text: str, length: int
) -> None:
    tokenizer = tokenizers_by_family["byte-bpe"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = get_rolling_token_windows(ids, tokenizer.bos_token_id, length - 1, 1)
    expected = [make_disjoint_window(window) for window in theirs]
    mine = list(windows(tokenizer, text, length))
    assert [answer for _, answer in mine] == [list(answer) for _, answer in expected]
    # the harness gives the last window as much context as fits; here every window has one token of context
    assert [prompt[-1] for prompt, _ in mine] == [context[-1] for context, _ in expected]


def test_bits_per_byte_and_its_score() -> None:
    assert bits_per_byte(2 * math.log(2), ["é"]) == pytest.approx(1.0)
    assert as_percent(1.0) == 50
    assert as_bits(as_percent(0.7)) == pytest.approx(0.7)
    assert as_percent(math.inf) == as_percent(math.nan) == 0
    assert as_bits(0.0) == math.inf


def test_rows_of_raw_text() -> None:
    rows = [{"text": "One."}, {"text": "Two."}]
    spec = TaskSpec("bits_per_byte")
    (task,) = TaskStream.from_rows({"news": {"train": rows, "test": rows}}, {"news": spec})
    assert task.train == [{"prompt": "", "answer": "One."}, {"prompt": "", "answer": "Two."}]
    with pytest.raises(UserError, match=r'task news test row 1: no "text"; every row needs {"text"}'):
        TaskStream.from_rows({"news": {"train": rows, "test": [{"prompt": "x"}]}}, {"news": spec})
    with pytest.raises(ValueError, match="columns: names the columns of text"):
        TaskSpec("bits_per_byte", columns={"prompt": "a", "answer": "b"})
