"""Training rows as demonstrations before a test row's prompt: which rows, how many fit, and as turns of a chat."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from codyra_llm.config import load_config
from codyra_llm.data.chat import find_chat_template
from codyra_llm.data.demonstrations import with_demonstrations
from codyra_llm.data.encode import encode_rows
from codyra_llm.data.ids import begin_mark
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.workflows.evaluate import score_model
from tests.chat_templates import TEMPLATES


def task_of(train: int) -> Task:
    rows = [{"prompt": f"What is {n} + 1?\nAnswer: ", "answer": str(n + 1)} for n in range(train + 3)]
    (task,) = TaskStream.from_rows({"sums": {"train": rows[3:], "test": rows[:3]}})
    return task


def test_a_prompt_begins_with_the_same_solved_rows(tokenizers_by_family: dict[str, PreTrainedTokenizerBase]) -> None:
    task = task_of(9)
    for tokenizer in tokenizers_by_family.values():
        plain = list(encode_rows(tokenizer, task.test, 64))
        found, note = with_demonstrations(task, plain, 4, 1, tokenizer, None, 512)
        assert note is None
        begin, prompts = len(begin_mark(tokenizer)), [tokenizer.decode(row.prompt[:]) for row in found]
        for before, row, text in zip(plain, found, prompts, strict=True):
            own = before.prompt[begin:]
            assert row.answer == before.answer and row.prompt[-len(own) :] == own
            assert row.prompt[:begin] == before.prompt[:begin] and text.count("Answer:") == 5
        shown = {text[: text.rindex("What is")] for text in prompts}
        assert len(shown) == 1, "the same for each row"
        solved = [f"What is {n} + 1?\nAnswer: {n + 1}\n\n" for n in range(3, 12)]
        assert sum(part.replace(" ", "") in prompts[0].replace(" ", "") for part in solved) == 4
        again, other = (with_demonstrations(task, plain, 4, seed, tokenizer, None, 512)[0] for seed in (1, 2))
        assert again == found != other


def test_room_for_some_for_none_and_more_than_there_are(
    tokenizers_by_family: dict[str, PreTrainedTokenizerBase],
) -> None:
    task, tokenizer = task_of(5), next(iter(tokenizers_by_family.values()))
    plain = list(encode_rows(tokenizer, task.test, 64))
    every, note = with_demonstrations(task, plain, 99, 1, tokenizer, None, 512)
    assert note is None and tokenizer.decode(every[0].prompt).count("Answer:") == 6
    length = len(every[0].prompt) - 1
    some, note = with_demonstrations(task, plain, 5, 1, tokenizer, None, length)
    assert note and note.endswith("of 3 test prompts have no room for 5 demonstrations")
    assert tokenizer.decode(some[0].prompt).count("Answer:") == 5
    assert with_demonstrations(task, plain, 5, 1, tokenizer, None, len(plain[0].prompt))[0] == plain


def test_in_a_chat_template_they_are_earlier_turns(tokenizers_by_family: dict[str, PreTrainedTokenizerBase]) -> None:
    source, _, family = TEMPLATES["llama-2"]
    tokenizer = copy.deepcopy(tokenizers_by_family[family])
    tokenizer.chat_template = source
    template, task = find_chat_template(tokenizer, "auto"), task_of(2)
    plain = list(encode_rows(tokenizer, task.test, 64, template=template))
    (first, *_), _ = with_demonstrations(task, plain, 2, 1, tokenizer, template, 512)
    turns: list[dict[str, str]] = []
    text = tokenizer.decode(first.prompt)
    for row in sorted(task.train, key=lambda row: text.index(row["prompt"].strip())):
        turns += [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    turns.append({"role": "user", "content": task.test[0]["prompt"]})
    expected: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert first.prompt == list(expected)


def test_a_model_is_scored_with_them(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {
        "model.name_or_path": str(tiny_folder),
        "order": ["FOMC", "NumGLUE-cm"],
        "data.max_test_examples": 3,
        "evaluate.scores": "nll",
        "data.max_prompt_length": 512,
    }
    without, with_two = (
        score_model(load_config(None, {**settings, "output_dir": str(tmp_path / str(n)), "evaluate.demonstrations": n}))
        for n in (0, 2)
    )
    assert all(with_two.answer_nll[task] != nll for task, nll in without.answer_nll.items())
    prompts = [(tmp_path / str(n) / "predictions" / "model.FOMC.jsonl").read_text() for n in (0, 2)]
    assert [line.split('"reference"')[0] for line in prompts[0].splitlines()] == [
        line.split('"reference"')[0] for line in prompts[1].splitlines()
    ], "what is scored is the row as it is"
