"""Files of prompts: JSON lists and JSONL, and the errors for malformed ones."""

import json
from pathlib import Path

import pytest

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.checks import Checks
from codyra_llm.evaluation.judge.prompts import read_prompt_files

TEMPLATE = "{prompt} {answer_a} {answer_b}"


def test_lists_and_lines_are_read_alike(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": "x", "category": "c", "checks": {"max_words": 3}}, {"prompt": "b\u2028", "more": 1}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    (tmp_path / "own.txt").write_text(TEMPLATE)
    paths = [str(tmp_path / "list.json"), str(tmp_path / "lines.jsonl")]
    first, second = read_prompt_files(paths, ["harmlessness", str(tmp_path / "own.txt")])
    assert (first.name, first.criterion, second.name, second.criterion) == ("list", "harmlessness", "lines", "own")
    assert "safer" in first.template
    assert second.template == TEMPLATE
    for file in (first, second):
        assert [(each.text, each.id, each.category) for each in file.prompts] == [
            ("a", "x", "c"),
            ("b\u2028", "2", None),
        ]
        assert file.prompts[0].checks == Checks(max_words=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts.jsonl: no rows"),
        ('{"prompt": "a"}\n{"prompt"', "prompts.jsonl line 2: not valid JSON"),
        ('\n{"text": "a"}', 'prompts.jsonl line 2: no "prompt"; every row needs {"prompt"}'),
        ('{"prompt": " "}', 'line 1: "prompt" is empty'),
        ("[1]", "line 1: is a list, not an object"),
        ('{"prompt": "a", "id": [1]}', 'line 1: "id" is [1]'),
        ('{"prompt": "a", "category": 1}', 'line 1: "category" is a number, not text'),
        ('{"prompt": "a", "id": "2"}\n{"prompt": "b"}', 'line 2: the id "2" is listed twice'),
        ('{"prompt": "a", "checks": {"words": 3}}', "line 1: checks.words: .*; checks are max_words, "),
        ('{"prompt": "a", "checks": {"max_words": "3"}}', "line 1: checks.max_words: .*found '3'"),
        ('{"prompt": "a", "checks": [3]}', "line 1: checks: .*found"),
    ],
)
def test_malformed_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("{", r"\{")) as error:
        read_prompt_files([str(tmp_path / "prompts.jsonl")], ["helpfulness"])
    assert "\n" not in str(error.value)


def test_criteria(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('[{"prompt": "a"}]')
    (tmp_path / "bad.txt").write_text("{prompt} {answer_a}")
    for criteria, message in {
        ("kindness",): 'unknown criterion "kindness"; helpfulness, harmlessness, or a .txt template',
        ("refusals",): 'unknown criterion "refusals"',
        ("nowhere.txt",): "nowhere.txt: No such file",
        (str(tmp_path / "bad.txt"),): "bad.txt: the template has no {answer_b}",
        ("helpfulness", "harmlessness"): "criteria: 2 for 1 files of prompts",
    }.items():
        with pytest.raises(UserError, match=message.replace("{", r"\{")):
            read_prompt_files([str(prompts)], criteria)
    with pytest.raises(UserError, match='two files are called "prompts"'):
        read_prompt_files([str(prompts), str(prompts)], ["helpfulness"])
    with pytest.raises(UserError, match=r"nothing\.json: No such file"):
        read_prompt_files([str(tmp_path / "nothing.json")], ["helpfulness"])
