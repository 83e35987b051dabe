"""Loads the items of the suites for lm-evaluation-harness, from a local folder or the hub.

Each loader returns {"test": Dataset}. `data_dir` contains one folder per suite in the format of its authors; without it
the items come from the hub. The sample and the text are stored next to this file. `shots` of an item is the text that
precedes its question; a limit on the number of items is spread over the values of `stratum`.
"""

import csv
import json
from collections import Counter
from pathlib import Path

import lm_eval
import yaml
from datasets import Dataset, load_dataset

SAMPLE = Path(__file__).parent / "sample"
NANO = Path(__file__).parents[1] / "nano" / "general"
ARTICLES = {"a", "an", "the"}
MMLU_SHOTS, GSM8K_SHOTS = 5, 8


def mmlu(data_dir=None, **_):
    """Loads MMLU: 57 subjects; each question follows the first five of its subject's dev split."""
    shots, rows = {}, []
    for split in ("dev", "test"):
        for subject, question, choices, answer in _mmlu_rows(data_dir, split):
            if split == "test":
                items = {"question": question, "choices": choices, "answer": answer}
                rows.append({**items, "shots": _mmlu_shots(subject, shots[subject]), "stratum": subject})
            else:
                shots.setdefault(subject, []).append((question, choices, answer))
    return {"test": Dataset.from_list(rows)}


def gsm8k(data_dir=None, **_):
    """Loads GSM8K: each problem follows the first eight of the training split with their solutions."""
    if data_dir:
        train, test = (_lines(Path(data_dir, "gsm8k", f"{split}.jsonl")) for split in ("train", "test"))
    else:
        loaded = load_dataset("openai/gsm8k", "main")
        train, test = list(loaded["train"]), list(loaded["test"])
    shots = "".join(f"Question: {row['question']}\nAnswer: {_worked(row['answer'])}\n\n" for row in train[:GSM8K_SHOTS])
    rows = [{"question": row["question"], "answer": _final(row["answer"]), "shots": shots} for row in test]
    return {"test": Dataset.from_list(rows)}


def bbh(data_dir=None, **_):
    """Loads BBH: 23 kinds of problem in 27 tasks; each problem follows the authors' three worked examples."""
    rows = []
    for name, shots in bbh_shots(data_dir):
        if data_dir:
            file = Path(data_dir, "bbh", "bbh", f"{name}.json")
            problems = json.loads(file.read_text(encoding="utf-8"))["examples"]
        else:
            problems = load_dataset("SaylorTwift/bbh", name, split="test")
        rows += [
            {"question": item["input"], "answer": item["target"], "shots": shots, "stratum": name} for item in problems
        ]
    return {"test": Dataset.from_list(rows)}


def bbh_shots(data_dir=None):
    """Yields (task, worked examples) of BBH, from the authors' files or, without a folder, from the harness's copy."""
    if data_dir:
        for file in _files(Path(data_dir, "bbh", "bbh"), "*.json"):
            prompt = Path(data_dir, "bbh", "cot-prompts", f"{file.stem}.txt").read_text(encoding="utf-8")
            yield file.stem, prompt.split("-----", 1)[-1].strip()
        return
    for file in _files(Path(lm_eval.__file__).parent / "tasks" / "bbh" / "cot_fewshot", "[a-z]*.yaml"):
        task = yaml.safe_load(file.read_text(encoding="utf-8").replace("!function", ""))
        worked = (
            f"Q: {shot['input']}\nA: Let's think step by step.\n{shot['target']}"
            for shot in task["fewshot_config"]["samples"]
        )
        yield task["dataset_name"], "\n\n".join([task["description"].strip(), *worked])


def tydiqa(data_dir=None, **_):
    """Loads TyDi QA: questions in nine languages about a given passage.

    Each follows one question of the training split, in the same language if there is one, else in English.
    """
    rows, examples = [], {}
    for language, item in _goldp_rows(data_dir, "train"):
        examples.setdefault(language, item)
    for language, item in _goldp_rows(data_dir, "dev"):
        example = examples.get(language, examples["english"])
        shots = f"{example['passage']}\nQ: {example['question']}\nA: {example['answers'][0]}\n\n"
        rows.append({**item, "shots": shots, "stratum": language})
    return {"test": Dataset.from_list(rows)}


def boolq(data_dir=None, **_):
    """Loads BoolQ: yes-no questions about a passage, the development split."""
    rows = (
        _lines(Path(data_dir, "boolq", "dev.jsonl")) if data_dir else load_dataset("google/boolq", split="validation")
    )
    keys = ("passage", "question")
    return {
        "test": Dataset.from_list([{**{key: row[key] for key in keys}, "answer": int(row["answer"])} for row in rows])
    }


def piqa(data_dir=None, **_):
    """Loads PIQA: which of two ways reaches a goal, the validation split."""
    if data_dir:
        labels = Path(data_dir, "piqa", "valid-labels.lst").read_text().split()
        rows = [
            {**row, "label": int(label)}
            for row, label in zip(_lines(Path(data_dir, "piqa", "valid.jsonl")), labels, strict=True)
        ]
    else:
        rows = load_dataset("baber/piqa", split="validation")
    return {"test": Dataset.from_list([{key: row[key] for key in ("goal", "sol1", "sol2", "label")} for row in rows])}


def sample_choice(**_):
    """Loads the questions of the built-in sample."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "choice.jsonl"))}


def sample_cloze(**_):
    """Loads the phrases of the built-in sample."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "cloze.jsonl"))}


def text(**_):
    """Loads the passages of prose."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "text.jsonl"))}


def nano_facts(**_):
    """Loads questions about facts of the world that nano was pretrained on."""
    return {"test": Dataset.from_list(_lines(NANO / "facts.jsonl"))}


def nano_sums(**_):
    """Loads sums of the kind that nano was pretrained on."""
    return {"test": Dataset.from_list(_lines(NANO / "sums.jsonl"))}


def nano_texts(**_):
    """Loads texts of that world that nano was not pretrained on."""
    return {"test": Dataset.from_list(_lines(NANO / "texts.jsonl"))}


def best_f1(doc, results):
    """Returns the largest word overlap (SQuAD's F1, 0 to 1) of the answer's first line with one of the true answers."""
    said = _words(results[0].strip().split("\n")[0])
    return {"overlap": max(_f1(said, _words(answer)) for answer in doc["answers"])}


def _files(folder, pattern):
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder}: holds no {pattern}")
    return files


def _goldp_rows(data_dir, split):
    if data_dir:
        for file in _files(Path(data_dir, "tydiqa-goldp"), f"*_tydiqa_{split}.json"):
            for item in _squad(file):
                yield file.name.split("_")[0], item
        return
    named = {"train": "train", "dev": "validation"}[split]
    for row in load_dataset("google-research-datasets/tydiqa", "secondary_task", split=named):
        item = {"passage": row["context"], "question": row["question"], "answers": row["answers"]["text"]}
        yield row["id"].split("-")[0], item


def _mmlu_rows(data_dir, split):
    if not data_dir:
        for row in load_dataset("cais/mmlu", "all", split=split):
            yield row["subject"], row["question"], row["choices"], row["answer"]
        return
    for file in _files(Path(data_dir, "mmlu", split), "*.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                choices = [row[f"choice{number}"] for number in range(4)]
                yield file.stem.removesuffix(f"_{split}"), row["question"], choices, int(row["answer"])


def _mmlu_shots(subject, shots):
    asked = [
        f"{question.strip()}\n"
        + "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
        + f"Answer: {'ABCD'[answer]}\n\n"
        for question, choices, answer in shots[:MMLU_SHOTS]
    ]
    return f"Multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n{''.join(asked)}"


def _worked(solution):
    """Returns a solution without calculator annotations, ending with "The answer is ...", as answers are parsed."""
    steps, _, final = solution.partition("####")
    while "<<" in steps:
        before, _, rest = steps.partition("<<")
        steps = before + rest.partition(">>")[2]
    return f"{steps.strip()} The answer is {final.strip()}."


def _final(solution):
    return solution.split("####")[-1].strip().replace(",", "")


def _squad(file):
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                answers = [answer["text"] for answer in item["answers"]]
                yield {"passage": paragraph["context"], "question": item["question"], "answers": answers}


def _lines(path):
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _words(text):
    kept = "".join(character if character.isalnum() else " " for character in text.lower())
    return [word for word in kept.split() if word not in ARTICLES]


def _f1(said, true):
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true)) if common else float(said == true)
