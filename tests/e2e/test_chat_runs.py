"""A run with a chat template: conversations and prompts of two tasks, and the files in which the template is saved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, GenerationConfig

from codyra_llm import run
from codyra_llm.config import load_config
from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.workflows.dry_run import dry_run
from codyra_llm.workflows.evaluate import score_model
from codyra_llm.workflows.judge import judge_models
from tests.e2e.test_run import tiny_config

# `<s>` ends a turn; it is not the tokenizer's EOS token
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ '<s>' if message.role == 'assistant' }}\n"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)
TASKS = {
    "tasks": {
        "talks": {"scorer": "f1", "max_new_tokens": 4},
        "sums": {"scorer": "accuracy", "max_new_tokens": 4, "chat_template": "none"},
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    talks, sums = tmp_path / "data" / "talks", tmp_path / "data" / "sums"
    talks.mkdir(parents=True)
    sums.mkdir()
    for name, numbers in (("train", range(16)), ("test", range(16, 18))):
        conversations = [
            {
                "messages": [
                    {"role": "user", "content": f"What comes after {n}?"},
                    {"role": "assistant", "content": str(n + 1)},
                    {"role": "user", "content": "And then?"},
                    {"role": "assistant", "content": str(n + 2)},
                ]
            }
            for n in numbers
        ]
        (talks / f"{name}.jsonl").write_text("\n".join(map(json.dumps, conversations)))
        (sums / f"{name}.json").write_text(json.dumps([{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in numbers]))
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS))
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    return tmp_path


def test_a_run_in_a_chat_template(tiny_folder: Path, folder: Path) -> None:
    own = {"task_file": str(folder / "tasks.yaml"), "data_dir": str(folder / "data"), "order": ["talks", "sums"]}
    with pytest.raises(
        UserError, match=r"task talks: data\.chat_template auto: the tokenizer of .* has no chat template"
    ):
        run(tiny_config(tiny_folder, folder / "run", **own, **{"data.chat_template": "auto"}))
    with pytest.raises(UserError, match="row 1: a conversation of 4 messages needs a chat template"):
        run(tiny_config(tiny_folder, folder / "run", **own))
    chat = {"data.chat_template": str(folder / "chat.jinja"), "train.num_train_epochs": 2}
    results = run(tiny_config(tiny_folder, folder / "run", **own, **chat))
    talks, sums = (task.chat_template for task in results.data.tasks)
    assert talks is not None
    assert sums is None
    saved = folder / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert (talks.setting, talks.end_token_id) == (chat["data.chat_template"], tokenizer.bos_token_id)
    assert tokenizer.chat_template == TEMPLATE
    ends = GenerationConfig.from_pretrained(saved).eos_token_id
    assert sorted(ends) == sorted({tokenizer.bos_token_id, tokenizer.eos_token_id})
    card = (saved / "README.md").read_text()
    assert "Put prompts into its chat template, but for sums, which it learned without." in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(program.replace("FOLDER", str(saved)).replace("PROMPT", "What comes after 3?"), {})
    rows = [
        json.loads(line) for line in (folder / "run" / "predictions" / "2-sums.talks.jsonl").read_text().splitlines()
    ]
    assert rows[0]["prompt"] == "user: What comes after 16?\n\nassistant: 17\n\nuser: And then?"
    assert rows[0]["reference"] == "18"

    settings = {"model.name_or_path": str(saved), "output_dir": str(folder / "scores")}
    scored = score_model(load_config(None, {**settings, **own, "data.chat_template": "auto"}))
    assert scored.scores["lenient"] == dict(zip(results.tasks, results.matrix[-1], strict=True))
    assert scored.answer_nll == pytest.approx(dict(zip(results.tasks, results.answer_nll[-1], strict=True)), abs=1e-4)

    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "What comes after 3?"}\n{"prompt": "And then?"}')
    answers: dict[str, str] = {}
    for setting in ("run", str(folder / "chat.jinja"), "none"):
        judged = folder / f"judged-{len(answers)}"
        config = JudgeConfig(
            str(saved), "base", (str(prompts),), output_dir=str(judged), chat_template=setting, max_new_tokens=4
        )
        judge_models(config)
        answers[setting] = (judged / "answers.jsonl").read_text()
    assert answers["run"] == answers[str(folder / "chat.jinja")] != answers["none"]

    talk = [sys.executable, "-m", "codyra_llm.cli", "chat", str(saved), "--max_new_tokens", "4"]
    said = subprocess.run(
        talk,
        input="What comes after 3?\n\nAnd then?\n/new\nWhat comes after 3?\n",
        text=True,
        capture_output=True,
        check=True,
    )
    first, _, again = said.stdout.splitlines()
    assert first == again, "a new conversation begins with nothing"
    (example,) = (row for row in map(json.loads, answers["run"].splitlines()) if row["prompt"].endswith("3?"))
    assert first.strip() == example["model"].strip()
    refused = subprocess.run(
        [*talk, "--chat_template", "none", "--system", "Be brief."], input="", text=True, capture_output=True
    )
    assert refused.returncode == 2
    assert "--system needs a chat template" in refused.stderr


def test_a_dry_run_shows_what_is_learned(tiny_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"task_file": str(folder / "tasks.yaml"), "data_dir": str(folder / "data"), "order": ["talks", "sums"]}
    config = tiny_config(tiny_folder, folder / "run", **own, **{"data.chat_template": str(folder / "chat.jinja")})
    dry_run(config)
    said = capsys.readouterr().out
    assert "a step has 8 rows = 4 (micro batch) x 2 (accumulation) x 1 rank; scored: all tasks after each" in said
    assert "talks/train.jsonl: the conversations are in messages" in said
    (row,) = (line.split() for line in said.splitlines() if line.startswith("sums "))
    assert row[1:5] == ["16", "0", "-", "2"]
    assert row[-2:] == ["none", "accuracy"]
    assert "assistant: >>1<s><<\nuser: And then?\nassistant: >>2<s><<" in said
    assert not (folder / "run").exists()
