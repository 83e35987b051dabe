"""Conversations in the chat templates of published models: transformers' tokens, and which of them are learned."""

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from codyra_llm.data.batches import IGNORED, collate
from codyra_llm.data.chat import DATE, ChatTemplate, encode_conversation, find_chat_template
from codyra_llm.data.encode import encode_request, encode_row, encode_rows
from codyra_llm.data.stream import Body
from codyra_llm.errors import UserError
from tests.chat_templates import TEMPLATES

QUESTION = {"role": "user", "content": "What is the capital of France?"}
REPLY = {"role": "assistant", "content": "Paris."}
LATER = {"role": "user", "content": "And of Italy?\n\nOne word."}
LAST = {"role": "assistant", "content": "Rome, which\nwas that of an empire."}
ENDS = {"llama-2": "</s>", "mistral": "</s>", "qwen-2.5": "<|im_end|>", "qwen-3": "<|im_end|>"}


@pytest.fixture(scope="module", params=TEMPLATES)
def chat_tokenizer(
    request: pytest.FixtureRequest, tokenizers_by_family: dict[str, PreTrainedTokenizerBase]
) -> tuple[str, PreTrainedTokenizerBase]:
    source, added, family = TEMPLATES[request.param]
    tokenizer = copy.deepcopy(tokenizers_by_family[family])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    tokenizer.chat_template = source
    return request.param, tokenizer


def end_of(name: str) -> str:
    return ENDS.get(name, "<|eot_id|>" if name.startswith("llama") else "<end_of_turn>")


def as_transformers(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **how: Any) -> list[int]:
    options = {"date_string": DATE, "enable_thinking": False, **how}
    ids: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(ids)


def auto(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    template = find_chat_template(tokenizer, "auto")
    assert template
    return template


@pytest.mark.parametrize("learn", ["all", "last"])
@pytest.mark.parametrize("messages", [[QUESTION, REPLY], [QUESTION, REPLY, LATER, LAST]], ids=["one", "two"])
def test_the_tokens_are_those_of_transformers(
    chat_tokenizer: tuple[str, PreTrainedTokenizerBase], messages: list[dict[str, str]], learn: Any
) -> None:
    name, tokenizer = chat_tokenizer
    if name == "qwen-3" and learn == "all" and len(messages) > 2:
        with pytest.raises(UserError, match="writes turn 2 of the conversation otherwise when others follow"):
            encode_conversation(tokenizer, auto(tokenizer), messages, learn)
        return
    prompt, answer, unlearned = encode_conversation(tokenizer, auto(tokenizer), messages, learn)
    whole = as_transformers(tokenizer, messages)
    ours = prompt + answer
    assert whole[: len(ours)] == ours
    assert not tokenizer.decode(whole[len(ours) :]).strip(), "all but the blank after the last turn"
    assert prompt.count(tokenizer.bos_token_id) <= 1 or name == "llama-2", "which has one for each question"
    end = tokenizer.convert_tokens_to_ids(end_of(name))
    assert answer[-1] == end
    turns = 2 if learn == "all" and len(messages) == 4 else 1
    assert len(unlearned) == turns - 1
    learned = [i for i in range(len(answer)) if not any(begin <= i < stop for begin, stop in unlearned)]
    text = tokenizer.decode([answer[i] for i in learned])
    assert text.count(end_of(name)) == turns, "each turn is learned up to its end"
    assert "Italy" not in text
    assert "<|im_start|>" not in text
    assert ("Paris" in text) == (turns == 2 or len(messages) == 2)
    first = messages[: 1 if turns == 2 else len(messages) - 1]
    assert prompt == as_transformers(tokenizer, first, add_generation_prompt=True), "what the model is asked with"


def test_a_system_message(chat_tokenizer: tuple[str, PreTrainedTokenizerBase]) -> None:
    name, tokenizer = chat_tokenizer
    messages = [{"role": "system", "content": "Be brief."}, QUESTION, REPLY]
    if name in ("gemma", "mistral"):
        with pytest.raises(UserError, match=r"chat template of .* fails on a conversation of system, user, assistant"):
            encode_conversation(tokenizer, auto(tokenizer), messages, "all")
        return
    prompt, answer, _ = encode_conversation(tokenizer, auto(tokenizer), messages, "all")
    assert (prompt + answer) == as_transformers(tokenizer, messages)[: len(prompt + answer)]
    assert "Be brief." in tokenizer.decode(prompt)


def test_prompt_and_answer_are_a_conversation_of_two(chat_tokenizer: tuple[str, PreTrainedTokenizerBase]) -> None:
    _, tokenizer = chat_tokenizer
    template = auto(tokenizer)
    row = {"prompt": QUESTION["content"], "answer": REPLY["content"]}
    example = encode_row(tokenizer, row, 100, template=template)
    assert (example.prompt, example.answer) == encode_conversation(tokenizer, template, [QUESTION, REPLY], "last")[:2]
    assert encode_request(tokenizer, QUESTION["content"], template) == example.prompt
    long = {"prompt": "Read <" + "word " * 200 + "> and say it.", "answer": "It."}
    example = encode_row(tokenizer, long, 100, Body("<", ">"), template)
    assert 90 < len(example.prompt) <= 100
    assert tokenizer.decode(example.answer) == tokenizer.decode(encode_row(tokenizer, long, 999, None, template).answer)
    assert "and say it." in tokenizer.decode(example.prompt)


def test_labels_leave_out_what_the_user_says(chat_tokenizer: tuple[str, PreTrainedTokenizerBase]) -> None:
    name, tokenizer = chat_tokenizer
    if name == "qwen-3":
        pytest.skip("learns the last turn alone")
    row = {"prompt": "", "answer": "", "messages": [QUESTION, REPLY, LATER, LAST]}
    (example,) = encode_rows(tokenizer, [row], 200, 200, template=auto(tokenizer))
    batch = collate([example], 0)
    learned = batch.labels[0] != IGNORED
    assert int(learned.sum()) == example.learned < len(example.answer)
    assert bool((batch.labels[0][learned] == batch.input_ids[0][learned]).all())
    weighted = [QUESTION, {**REPLY, "weight": 0}, LATER, LAST]
    (first,) = encode_rows(tokenizer, [{**row, "messages": weighted}], 200, template=auto(tokenizer))
    (second,) = encode_rows(tokenizer, [row], 200, template=auto(tokenizer), learn="last")
    assert first == second


def test_a_token_that_would_span_the_begin_of_a_turn(tokenizers_by_family: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = copy.deepcopy(tokenizers_by_family["byte-bpe"])
    template = ChatTemplate(
        "auto", "it", "{% for m in messages %}{{ m.content }}{{ '</s>' if loop.index0 % 2 }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "the answ"}, {"role": "assistant", "content": "er"}]
    prompt, answer, _ = encode_conversation(tokenizer, template, messages, "last")
    assert prompt == tokenizer("the answ")["input_ids"], "as it is read when the turn is generated"
    assert answer == [*tokenizer("er")["input_ids"], tokenizer.eos_token_id]


def test_templates_that_cannot_be_used(
    tokenizers_by_family: dict[str, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = tokenizers_by_family["byte-bpe"]
    assert find_chat_template(tokenizer, "none") is None
    with pytest.raises(UserError, match="has no chat template; give the path of one, or none"):
        find_chat_template(tokenizer, "auto")
    with pytest.raises(UserError, match=r"missing\.jinja"):
        find_chat_template(tokenizer, str(tmp_path / "missing.jinja"))
    file = tmp_path / "open.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    template = find_chat_template(tokenizer, str(file))
    assert template
    with pytest.raises(UserError, match="which holds no special token of"):
        template.closing(tokenizer)
    file.write_text("{% for m in messages %}")
    template = find_chat_template(tokenizer, str(file))
    assert template
    with pytest.raises(UserError, match=r"open\.jinja: fails on a conversation of user, assistant"):
        template.closing(tokenizer)
    row = {"prompt": "", "answer": "", "messages": [QUESTION, REPLY, LATER, LAST]}
    with pytest.raises(UserError, match="rows row 1: a conversation of 4 messages needs a chat template"):
        list(encode_rows(tokenizer, [row], 100))
