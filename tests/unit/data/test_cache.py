"""The cache of tokenized rows: the tokenizer's ids, computed once, and never read from an invalid file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from codyra_llm.data.cache import ROWS_AT_ONCE, TokenCache
from codyra_llm.data.encode import encode_rows
from codyra_llm.data.stream import Body
from codyra_llm.errors import UserError

ROWS = [
    {"prompt": f"Text:\n{'rates rise ' * (number % 40)}\nStance:", "answer": f"answer {number}"}
    for number in range(ROWS_AT_ONCE + 10)
]
LIMITS: dict[str, Any] = {"max_prompt_length": 30, "body": Body("Text:\n", "\nStance:")}


@pytest.fixture
def tokenizer(tokenizers_by_family: dict[str, Any]) -> PreTrainedTokenizerFast:
    return tokenizers_by_family["llama-sentencepiece"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path))
    return tmp_path / "tokens"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List that records the texts that are tokenized."""
    texts: list[str] = []
    tokenize: Callable[..., Any] = PreTrainedTokenizerBase.__call__

    def counted(self: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
        texts.append(text)
        return tokenize(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    return texts


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def test_a_second_start_tokenizes_nothing(tokenizer: Any, folder: Path, calls: list[str]) -> None:
    first = TokenCache(tokenizer).encode_rows(ROWS, "train.json", **LIMITS)
    assert len(calls) > len(ROWS)
    assert list(first) == list(encode_rows(tokenizer, ROWS, **LIMITS))
    calls.clear()
    second = TokenCache(tokenizer).encode_rows(ROWS, "train.json", **LIMITS)
    assert list(second) == list(first)
    assert second[3:5] == [first[3], first[4]] and second[-1] == first[len(ROWS) - 1]
    assert not calls
    assert len(files(folder)) == 1 and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("rows", "limits"),
    [
        ([*ROWS[:3], {**ROWS[3], "answer": "answer 3 "}], LIMITS),
        ([*ROWS[:3], {**ROWS[3], "prompt": ROWS[2]["prompt"]}], LIMITS),
        (ROWS[:3], LIMITS),
        (ROWS[:4][::-1], LIMITS),
        (ROWS[:4], {**LIMITS, "max_prompt_length": 29}),
        (ROWS[:4], {**LIMITS, "body": Body("Text:\n", "\nStance:", "tail")}),
        (ROWS[:4], {**LIMITS, "max_answer_length": 9}),
        (ROWS[:4], {**LIMITS, "max_answer_length": 9, "drop_long_answers": True}),
    ],
    ids=["answer", "prompt", "fewer", "order", "prompt length", "body", "answer length", "long answers"],
)
def test_other_rows_or_limits_are_another_file(
    tokenizer: Any, folder: Path, rows: list[Any], limits: dict[str, Any]
) -> None:
    cache = TokenCache(tokenizer)
    cache.encode_rows(ROWS[:4], "train.json", **LIMITS)
    assert list(cache.encode_rows(rows, "train.json", **limits)) == list(encode_rows(tokenizer, rows, **limits))
    assert len(files(folder)) == 2


def test_another_tokenizer_is_another_file(tokenizers_by_family: dict[str, Any], folder: Path) -> None:
    for number, tokenizer in enumerate(tokenizers_by_family.values(), start=1):
        found = TokenCache(tokenizer).encode_rows(ROWS[:4], "train.json", **{**LIMITS, "max_prompt_length": 300})
        assert list(found) == list(encode_rows(tokenizer, ROWS[:4], 300))
        assert len(files(folder)) == number


@pytest.mark.parametrize("kind", ["empty", "cut", "no end", "other bytes", "one bit"])
def test_a_damaged_file_is_made_anew(tokenizer: Any, folder: Path, kind: str) -> None:
    whole = list(TokenCache(tokenizer).encode_rows(ROWS[:40], "train.json", **LIMITS))
    (file,) = files(folder)
    good = file.read_bytes()
    content = {"empty": b"", "cut": good[: len(good) // 2], "no end": good[:-10], "other bytes": b"x" * len(good)}
    for bad in [content[kind]] if kind in content else [_flipped(good, place) for place in range(0, len(good), 499)]:
        file.unlink()  # other processes may have mapped it
        file.write_bytes(bad)
        assert list(TokenCache(tokenizer).encode_rows(ROWS[:40], "train.json", **LIMITS)) == whole


def _flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def test_errors_of_rows_are_those_of_the_encoding_and_leave_no_file(tokenizer: Any, folder: Path) -> None:
    message = r"^FOMC/train.json row 7: the answer has \d+ tokens with EOS, data.max_answer_length is 3"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            TokenCache(tokenizer).encode_rows(ROWS[:2], "FOMC/train.json", [7, 9], **LIMITS, max_answer_length=3)
    assert not files(folder) and not list(folder.glob("*.tmp"))


def test_where_nothing_can_be_kept_it_is_said_once(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODYRA_CACHE", str(tmp_path / "file" / "cache"))
    cache = TokenCache(tokenizer)
    for _ in range(2):
        found = cache.encode_rows(ROWS[:4], "train.json", **LIMITS)
        assert list(found) == list(encode_rows(tokenizer, ROWS[:4], **LIMITS))
    (note,) = cache.notes
    assert "cannot be kept there (Not a directory)" in note and "set CODYRA_CACHE" in note
