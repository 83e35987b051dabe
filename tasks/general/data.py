"""The suites' items, from a local folder or the hub, as lm-evaluation-harness asks for them.

Each function returns {"test": Dataset}. `data_dir` holds one folder per suite in its authors' own format; without it
the items come from the hub. The sample and the text are beside this file. An item's `shots` is the text that precedes
its question, its `stratum` what a limit spreads over.
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
    """57 subjects, each question after the first five of its subject's dev split."""
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
    """Problems after the first eight of the training split with their solutions."""
    if data_dir:
        train, test = (_lines(Path(data_dir, "gsm8k", f"{split}.jsonl")) for split in ("train", "test"))
    else:
        loaded = load_dataset("openai/gsm8k", "main")
        train, test = list(loaded["train"]), list(loaded["test"])
    shots = "".join(f"Question: {row['question']}\nAnswer: {_worked(row['answer'])}\n\n" for row in train[:GSM8K_SHOTS])
    rows = [{"question": row["question"], "answer": _final(row["answer"]), "shots": shots} for row in test]
    return {"test": Dataset.from_list(rows)}


def bbh(data_dir=None, **_):
    """23 kinds of problem in 27 tasks, each after its authors' three worked examples."""
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
    """(task, worked examples) of BBH: its authors' files or, without a folder, the same as the harness has them."""
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
    """Questions in nine languages about a given passage, each after one of training in its language or English."""
    rows, examples = [], {}
    for language, item in _goldp_rows(data_dir, "train"):
        examples.setdefault(language, item)
    for language, item in _goldp_rows(data_dir, "dev"):
        example = examples.get(language, examples["english"])
        shots = f"{example['passage']}\nQ: {example['question']}\nA: {example['answers'][0]}\n\n"
        rows.append({**item, "shots": shots, "stratum": language})
    return {"test": Dataset.from_list(rows)}


def boolq(data_dir=None, **_):
    """Yes-no questions about a passage, the development split."""
    rows = (
        _lines(Path(data_dir, "boolq", "dev.jsonl")) if data_dir else load_dataset("google/boolq", split="validation")
    )
    keys = ("passage", "question")
    return {
        "test": Dataset.from_list([{**{key: row[key] for key in keys}, "answer": int(row["answer"])} for row in rows])
    }


def piqa(data_dir=None, **_):
    """Which of two ways reaches a goal, the validation split."""
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
    """The built-in sample's questions."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "choice.jsonl"))}


def sample_cloze(**_):
    """The built-in sample's phrases."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "cloze.jsonl"))}


def text(**_):
    """The passages of prose."""
    return {"test": Dataset.from_list(_lines(SAMPLE / "text.jsonl"))}


def nano_facts(**_):
    """Facts of the world that nano was pretrained on."""
    return {"test": Dataset.from_list(_lines(NANO / "facts.jsonl"))}


def nano_sums(**_):
    """Sums of the kind that nano was pretrained on."""
    return {"test": Dataset.from_list(_lines(NANO / "sums.jsonl"))}


def nano_texts(**_):
    """Texts of that world which it has not read."""
    return {"test": Dataset.from_list(_lines(NANO / "texts.jsonl"))}


def best_f1(doc, results):
    """Overlap in words of the first line with the best of the true answers, 0 to 1 (SQuAD's F1)."""
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
    """A solution without the calculator's marks, ending as the answers are read."""
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
