"""Conversations in a model's chat template, with the same tokens as transformers, and which tokens are learned."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from codyra_llm.config import load_config
from codyra_llm.data.ids import text_ids
from codyra_llm.errors import UserError, reason
from codyra_llm.files import expand, read_text

Learn = Literal["all", "last"]
Message = dict[str, Any]  # role and content, both text; weight 0: a turn of the assistant that is not learned
# for templates that write the date: a run resumed on another day has the same tokens (the default date of Llama 3.1)
DATE = "26 Jul 2024"


@dataclass(frozen=True)
class ChatFacts:
    """What results say of a chat template: what it was found by, "auto" or a path; its hash; what ends a turn."""

    setting: str
    sha256: str
    end_token_id: int


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        setting: "auto" or the path of the template.
        name: its name in error messages.
        source: its Jinja source.
    """

    setting: str
    name: str
    source: str

    def text(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        reply: bool = False,
        unfinished: bool = False,
    ) -> str:
        """Renders the conversation as text.

        Args:
            tokenizer: the tokenizer.
            messages: the conversation.
            reply: add the beginning of the assistant's next turn.
            unfinished: leave the last message open, to be continued.

        Raises:
            UserError: the template fails on the conversation.
        """
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            text = tokenizer.apply_chat_template(
                plain,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=reply,
                continue_final_message=unfinished,
                date_string=DATE,
                enable_thinking=False,
            )
        except Exception as error:  # a template is a program and can raise anything
            roles = ", ".join(message["role"] for message in plain)
            raise UserError(f"{self.name}: fails on a conversation of {roles}: {reason(error)}") from None
        return str(text)

    def prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation up to the beginning of the assistant's next turn."""
        return text_ids(tokenizer, self.text(tokenizer, messages, reply=True))

    @lru_cache(maxsize=8)  # noqa: B019  # of a few small values
    def closing(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Returns (the text after an assistant's message, its part up to the token that ends the turn).

        Raises:
            UserError: no special token of the tokenizer ends a turn, so no answer could ever end.
        """
        probe = "A1b2C3"
        text = self.text(tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}])
        after = text.rpartition(probe)[2]
        ends = [(after.find(token), token) for token in _special_tokens(tokenizer) if token in after]
        if not ends:
            raise UserError(
                f"{self.name}: ends the assistant's turn with {after!r}, which holds no special token of "
                f"{tokenizer.name_or_path}; give a template that ends it with one, such as {tokenizer.eos_token}"
            )
        place, token = min(ends)
        return after, after[: place + len(token)]

    def facts(self, tokenizer: PreTrainedTokenizerBase) -> ChatFacts:
        """Returns how results describe the template."""
        return ChatFacts(self.setting, hashlib.sha256(self.source.encode()).hexdigest(), self.end_id(tokenizer))

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Returns the id of the token that ends an assistant's turn."""
        return text_ids(tokenizer, self.closing(tokenizer)[1])[-1]


def find_chat_template(tokenizer: PreTrainedTokenizerBase, setting: str) -> ChatTemplate | None:
    """Returns the template of a setting: "none", "auto" (the tokenizer's own), or the path of a Jinja file.

    Raises:
        UserError: the tokenizer has no template of its own, or the file cannot be read.
    """
    if setting == "none":
        return None
    if setting != "auto":
        return ChatTemplate(setting, f"chat template {setting}", read_text(expand(setting)))
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several, by name
        own = own.get("default")
    if not own:
        raise UserError(
            f"data.chat_template auto: the tokenizer of {tokenizer.name_or_path} has no chat template; give the "
            "path of one, or none"
        )
    return ChatTemplate(setting, f"the chat template of {tokenizer.name_or_path}", own)


def template_of(tokenizer: PreTrainedTokenizerBase, model: str, setting: str) -> ChatTemplate | None:
    """Returns the template for prompts to a finished model.

    Args:
        tokenizer: the model's tokenizer.
        model: the model's name or folder.
        setting: "run": the template of the run that saved the model, "auto" for other models; "auto": the tokenizer's,
            if it has one; "none"; or the path of a Jinja file.
    """
    saved = expand(model).absolute().parent / "config.yaml"
    if setting == "run" and saved.is_file() and load_config(saved).data.chat_template == "none":
        return None
    if setting in ("run", "auto"):  # a run saves its template with the tokenizer
        return find_chat_template(tokenizer, "auto" if tokenizer.chat_template else "none")
    return find_chat_template(tokenizer, setting)


def end_ids(tokenizer: PreTrainedTokenizerBase, *templates: ChatTemplate | None) -> set[int]:
    """Returns the ids of the tokens that end a turn in any of the templates."""
    return {template.end_id(tokenizer) for template in templates if template}


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, messages: Sequence[Message], learn: Learn
) -> tuple[list[int], list[int], tuple[tuple[int, int], ...]]:
    """Returns (ids before the first learned turn, ids from there to the end of the last, ranges of these not learned).

    Together they are `tokenizer.apply_chat_template(messages)` up to the end of the last learned turn. If a token would
    span the beginning of a turn, the text is tokenized in separate parts, as it is when the turn is generated.

    Args:
        tokenizer: the tokenizer.
        template: the chat template.
        messages: the conversation; the last message is the assistant's.
        learn: "all": every turn of the assistant whose weight is not 0; "last": the last turn.

    Raises:
        UserError: the template fails on the conversation, or renders it so that its turns cannot be separated.
    """
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [i for i in assistant if messages[i].get("weight", 1)] if learn == "all" else assistant[-1:]
    whole = template.text(tokenizer, messages)
    closing, end_of_turn = template.closing(tokenizer)
    places: list[int] = []
    for turn in learned:
        begin = template.text(tokenizer, messages[:turn], reply=True)
        end = template.text(tokenizer, messages[: turn + 1])
        if not whole.startswith(end):  # rendered differently before other turns (without its reasoning, for example)
            end = begin + messages[turn]["content"].strip() + closing
        if not (whole.startswith(end) and end.startswith(begin) and end.endswith(closing)):
            raise UserError(
                f"{template.name}: writes turn {turn + 1} of the conversation otherwise when others follow; "
                "set learn: last in the task file"
            )
        places += [len(begin), len(end) - len(closing) + len(end_of_turn)]
    ids = _ids_with_cuts(tokenizer, whole, places)
    answer: list[int] = []
    ranges: list[tuple[int, int]] = []
    for number, part in enumerate(ids[1:-1]):  # learned, read, learned, ...
        if number % 2:
            ranges.append((len(answer), len(answer) + len(part)))
        answer += part
    return ids[0], answer, tuple(ranges)


def _ids_with_cuts(tokenizer: PreTrainedTokenizerBase, text: str, places: Sequence[int]) -> list[list[int]]:
    """Returns the ids of the parts of a text that is split at `places` (character positions)."""
    whole = text_ids(tokenizer, text)
    counts = [0]
    for place in places:
        before = text_ids(tokenizer, text[:place])
        if whole[: len(before)] != before:  # a token spans the place
            return [text_ids(tokenizer, text[begin:end]) for begin, end in pairwise([0, *places, len(text)])]
        counts.append(len(before))
    return [whole[begin:end] for begin, end in pairwise([*counts, len(whole)])]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def as_messages(prompt: str, answer: str | None = None) -> list[Message]:
    """Returns a prompt as the user's turn, and an answer, if any, as the assistant's."""
    messages = [{"role": "user", "content": prompt}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]
