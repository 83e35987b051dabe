"""Conversations in the formats of OpenAI and ShareGPT as rows, and the errors for other formats."""

import json
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.data.stream import TaskSpec
from codyra_llm.data.tables import read_split
from codyra_llm.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def read(folder: Path, rows: list[Any], notes: list[str] | None = None) -> list[dict[str, Any]]:
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return read_split(TaskSpec("accuracy"), folder, "train", ([] if notes is None else notes).append)[0]


def test_both_layouts_are_the_same_rows(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    openai = [
        {"messages": [USER, ASSISTANT], "id": 1},
        {
            "messages": [
                system,
                USER,
                {**ASSISTANT, "weight": 0},
                {**USER, "content": [{"type": "text", "text": "So?"}]},
                ASSISTANT,
            ]
        },
    ]
    share_gpt = [
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}], "id": 1},
        {
            "system": "Be kind.",
            "conversations": [
                {"from": "human", "value": "Hi?"},
                {"from": "gpt", "value": "Hello.", "weight": 0},
                {"from": "user", "value": "So?"},
                {"from": "assistant", "value": "Hello."},
            ],
        },
    ]
    notes: list[str] = []
    rows = read(tmp_path, openai, notes)
    assert rows == read(tmp_path, share_gpt)
    assert notes[0].endswith("train.jsonl: the conversations are in messages")
    assert notes[1].endswith("of its rows, only messages is used, not 'id'")
    assert rows[0] == {"prompt": "Hi?", "answer": "Hello.", "messages": [USER, ASSISTANT]}
    assert rows[1]["prompt"] == "system: Be kind.\n\nuser: Hi?\n\nassistant: Hello.\n\nuser: So?"
    assert rows[1]["messages"][2] == {**ASSISTANT, "weight": 0}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "Hi?"}, '"messages" is text, not a list of messages'),
        ({"text": "Hi?"}, '"messages" is null, not a list of messages'),
        ({"messages": ["Hi?"]}, "message 1 is text, not an object"),
        ({"messages": [USER]}, "does not end with the assistant"),
        ({"messages": [ASSISTANT]}, "does not begin with the user"),
        ({"messages": [USER, USER, ASSISTANT]}, "two messages of the same role follow each other"),
        ({"messages": [USER, ASSISTANT, {"role": "system", "content": "x"}]}, "a system message is not the first"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has the role 'tool'; there are user"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [1]}]}, "message 2 calls a tool"),
        ({"messages": [USER, {**ASSISTANT, "content": " "}]}, "message 2 is empty"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, ASSISTANT]},
            "message 1 holds parts that are not text",
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "message 2 has the weight 0.5"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "so nothing is learned"),
        ({"messages": [USER, ASSISTANT], "system": 3}, '"system" is a number, not text'),
    ],
)
def test_what_is_wrong_with_a_conversation(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, [{"messages": [USER, ASSISTANT]}, row, row])
    said = str(error.value)
    assert f"{tmp_path}/train.jsonl row 2: " in said
    assert problem in said
    assert 'every row needs "messages"' in said
    assert "; row 3: " in said


def test_the_first_faults_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 2: .*; row 11: .*; and 3 more$"):
        read(tmp_path, [{"messages": [USER, ASSISTANT]}] + 13 * [{"messages": [USER]}])
