"""Token sequences with each family of tokenizer: what is masked, what is kept, and what may be truncated."""

from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from codyra_llm.data.batches import IGNORED, collate
from codyra_llm.data.encode import check_tokenizer, encode_answer, encode_prompt, encode_rows
from codyra_llm.data.stream import Body
from codyra_llm.errors import UserError
from codyra_llm.models.gguf import BUILTIN
from codyra_llm.models.source import resolve_model

FAMILIES = ["llama-sentencepiece", "gemma", "byte-bpe", "byte-bpe-with-begin-mark", "smollm2"]
ROWS = [
    {"prompt": "Name the policy stance.\nText:\nOfficials agreed to raise rates.\nStance:", "answer": "B"},
    {"prompt": "文本：\n夜市环境很好。\n态度：", "answer": "A"},
    {"prompt": "Solve it.\nQuestion:\nHow many legs do 3 cats have?\nAnswer:", "answer": "12"},
    {"prompt": "x = 1 <EOL> print ( x ) <EOL>", "answer": "return x"},
    {"prompt": "Choose.\nQuestion:\nWhich is it?\nAnswer:", "answer": "B\nA whale breathes air.\n"},
]


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tokenizers_by_family: dict[str, Any]) -> PreTrainedTokenizerBase:
    if request.param == "smollm2":
        return AutoTokenizer.from_pretrained(resolve_model(BUILTIN))
    return tokenizers_by_family[request.param]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def test_the_loss_counts_exactly_the_answer_and_its_end_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = list(encode_rows(tokenizer, ROWS, 512))
    batch = collate(examples, pad_token_id=0)
    for row, ids, labels in zip(ROWS, batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        counted = [token for token in labels if token != IGNORED]
        first = next(k for k, token in enumerate(labels) if token != IGNORED)
        assert ids[first : first + len(counted)] == counted, "the counted tokens stand in one piece"
        assert counted[-1] == tokenizer.eos_token_id
        assert text_of(tokenizer, counted[:-1]).strip() == row["answer"].strip()
        assert text_of(tokenizer, ids[:first]).strip() == row["prompt"].strip()


def test_training_continues_exactly_what_generation_is_given(tokenizer: PreTrainedTokenizerBase) -> None:
    for row in ROWS:
        (example,) = encode_rows(tokenizer, [row], 512)
        assert example.prompt == encode_prompt(tokenizer, row["prompt"], 512)
        assert example.answer == encode_answer(tokenizer, row["answer"])


def test_the_begin_mark_is_there_where_the_tokenizer_has_one(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, "Hello there", 512)
    own = tokenizer("Hello there")["input_ids"]
    assert ids == own
    assert ids.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("keep", ["head", "tail"])
def test_only_the_body_is_cut(tokenizer: PreTrainedTokenizerBase, keep: str) -> None:
    body = Body(start="Text:\n", end="\nStance:", keep=keep)
    words = " ".join(f"w{i}" for i in range(400))
    prompt = f"Name the policy stance.\nText:\n{words}\nStance:"
    ids = encode_prompt(tokenizer, prompt, 120, body)
    assert 110 <= len(ids) <= 120
    text = text_of(tokenizer, ids)
    assert text.strip().startswith("Name the policy stance.")
    assert text.endswith("\nStance:")
    assert ("w0 " in text) == (keep == "head")
    assert ("w399" in text) == (keep == "tail")


def test_a_prompt_that_fits_is_left_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, ROWS[0]["prompt"], 512)
    assert encode_prompt(tokenizer, ROWS[0]["prompt"], len(ids)) == ids


def test_an_instruction_that_does_not_fit_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    body = Body(start="Text:\n", end="\nStance:")
    with pytest.raises(
        UserError, match=r"row 1: the prompt without its body has \d+ tokens, more than 5; raise data.max_prompt_length"
    ):
        list(encode_rows(tokenizer, ROWS[:1], 5, body=body, where="FOMC/train.json"))


def test_a_long_answer_is_an_error_or_dropped_but_never_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"FOMC/train.json row 5: the answer has \d+ tokens.*max_answer_length is 6"):
        list(encode_rows(tokenizer, ROWS, 512, max_answer_length=6, where="FOMC/train.json"))
    kept = list(encode_rows(tokenizer, ROWS, 512, max_answer_length=6, drop_long_answers=True))
    assert all(len(example.answer) <= 6 for example in kept)
    assert 0 < len(kept) < len(ROWS)


def test_a_tokenizer_without_end_mark_is_refused(tokenizers_by_family: dict[str, Any]) -> None:
    tokenizer = tokenizers_by_family["byte-bpe"].__class__(
        tokenizer_object=tokenizers_by_family["byte-bpe"].backend_tokenizer
    )
    with pytest.raises(UserError, match="no end-of-sequence token"):
        check_tokenizer(tokenizer)
