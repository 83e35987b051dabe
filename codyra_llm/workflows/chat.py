"""A conversation with a model on the terminal."""

import sys
from collections.abc import Iterator

import torch
from transformers import GenerationConfig, TextStreamer

from codyra_llm.data.chat import Message, template_of
from codyra_llm.data.encode import encode_request, padding_id
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_model
from codyra_llm.models.save import add_end_ids, end_ids
from codyra_llm.models.source import open_source


def chat(name: str, setting: str, system: str | None, max_new_tokens: int, dtype: str) -> None:
    """Answers the lines of standard input, greedily, printing each word as it is generated.

    Args:
        name: the model.
        setting: the source of its chat template, see `template_of`.
        system: system message of each conversation.
        max_new_tokens: the most tokens of an answer.
        dtype: dtype of the model.

    Raises:
        UserError: the model cannot be used, or its template fails on the conversation.
    """
    source = open_source(name)
    tokenizer, template = source.tokenizer, template_of(source.tokenizer, name, setting)
    if system and not template:
        raise UserError("--system needs a chat template, and this model's prompts are used as they are")
    model = load_model(source, dtype).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    add_end_ids(model, {template.end_id(tokenizer)} if template else ())
    how = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(end_ids(model, tokenizer)),
        pad_token_id=padding_id(tokenizer),
    )
    begin: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(begin)
    for line in _lines("prompts are in the chat template" if template else "prompts are used as they are, one by one"):
        if line == "/new":
            messages = list(begin)
            continue
        messages.append({"role": "user", "content": line})
        ids = template.prompt(tokenizer, messages) if template else encode_request(tokenizer, line, None)
        if len(ids) + max_new_tokens > source.context_length:
            raise UserError(
                f"{len(ids)} tokens and {max_new_tokens} of an answer, the context length is {source.context_length}; "
                "begin anew with /new, or lower --max_new_tokens"
            )
        prompt = torch.tensor([ids], device=model.device)
        given = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=how,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        answer = str(tokenizer.decode(given[0, len(ids) :], skip_special_tokens=True)).strip()
        messages.append({"role": "assistant", "content": answer})


def _lines(about: str) -> Iterator[str]:
    """Yields the lines that are typed or piped in, without blank ones."""
    typed = sys.stdin.isatty()
    if typed:
        print(f"{about}; Ctrl-D ends, /new begins another conversation")
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        if line:
            yield line
