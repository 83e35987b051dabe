"""Converts conversations, OpenAI's `messages` or ShareGPT's `conversations`, to rows."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from codyra_llm.data.rows import Row, check_list, faults, kind_of, text_problem
from codyra_llm.errors import UserError

COLUMNS = ("messages", "conversations")
ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "model", "bot")},
    "system": "system",
}


def conversation_rows(values: Any, where: str, column: str) -> list[Row]:
    """Returns rows whose `messages` are a column's conversations; `prompt` and `answer` are for display and scoring.

    Raises:
        UserError: a row has no conversation that an assistant could learn from.
    """
    expected = f'every row needs "{column}", a list of {{"role", "content"}} that ends with the role assistant'
    check_list(values, where, expected)
    rows, bad = [], []
    for number, value in enumerate(values, start=1):
        try:
            rows.append(_row(value, column))
        except ValueError as error:
            bad.append((number, str(error)))
    if bad:
        raise UserError(faults(where, bad, expected))
    return rows


def _row(value: Any, column: str) -> Row:
    turns = value.get(column) if isinstance(value, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError(f'"{column}" is {kind_of(turns) if turns != [] else "empty"}, not a list of messages')
    messages = [_message(turn, f"message {number}") for number, turn in enumerate(turns, start=1)]
    if value.get("system"):  # ShareGPT stores it outside the conversation
        if problem := text_problem(value["system"]):
            raise ValueError(f'"system" {problem}')
        messages.insert(0, {"role": "system", "content": value["system"]})
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise ValueError("a system message is not the first")
    dialog = roles[roles[0] == "system" :]
    if dialog[:1] != ["user"]:
        raise ValueError("the conversation does not begin with the user")
    if any(first == second for first, second in pairwise(dialog)):
        raise ValueError("two messages of the same role follow each other")
    if dialog[-1] != "assistant":
        raise ValueError("the conversation does not end with the assistant")
    if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
        raise ValueError("every message of the assistant has weight 0, so nothing is learned")
    return {"prompt": _transcript(messages[:-1]), "answer": messages[-1]["content"], "messages": messages}


def _message(turn: Any, which: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{which} is {kind_of(turn)}, not an object")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError(f"{which} calls a tool, which cannot be learned yet; leave such conversations out")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise ValueError(f"{which} has the role {role!r}; there are {', '.join(ROLES)}")
    if isinstance(content, list):  # OpenAI's parts
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise ValueError(f"{which} holds parts that are not text")
        content = "".join(part["text"] for part in content)
    if problem := text_problem(content):
        raise ValueError(f"{which} {problem}")
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise ValueError(f"{which} has the weight {weight!r}; there are 0 and 1")
    return {"role": ROLES[role], "content": content} | ({"weight": 0} if weight == 0 else {})


def _transcript(messages: list[dict[str, Any]]) -> str:
    """Returns a conversation for display: the text of a single message, else each message after its role."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
