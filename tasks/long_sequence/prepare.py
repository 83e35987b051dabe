"""Writes the fifteen classification tasks of the long-sequence benchmark from their public data sets.

    python tasks/long_sequence/prepare.py --output_dir data/long_sequence
    python tasks/long_sequence/prepare.py --output_dir data/long_sequence --tasks dbpedia,amazon,yahoo,ag

The tasks and their orders are those of O-LoRA (arXiv 2310.14152), after Progressive Prompts: 1000 training rows of
each, drawn with a fixed seed, and up to 500 test rows. The prompts are this project's own: a question, the labels to
choose from, and the text. The data comes from the Hugging Face hub, through the datasets library and its cache.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN, TEST, SEED = 1000, 500, 42
Item = Mapping[str, Any]

SENTIMENT = "What is the sentiment of the following text?"
TOPIC = "What is the topic of the following text?"
RELATION = "What is the logical relation of sentence 1 to sentence 2?"
STARS = ("very negative", "negative", "neutral", "positive", "very positive")
TRUTH = ("false", "true")


@dataclass(frozen=True)
class Source:
    """The data set of a task, and how its items become rows.

    Attributes:
        path: of the data set on the hub.
        question: the question that begins each prompt.
        labels: the answers, in the order of their numbers in the data set.
        text: makes the text of a prompt from an item.
        name: configuration of the data set on the hub; None: it has only one.
        test: the split that has labels and is not trained on.
        label: key of an item's label number.
    """

    path: str
    question: str
    labels: tuple[str, ...]
    text: Callable[[Item], str]
    name: str | None = None
    test: str = "test"
    label: str = "label"


def _pair(first: str, second: str) -> Callable[[Item], str]:
    return lambda item: f"Sentence 1: {item[first]}\nSentence 2: {item[second]}"


def _alone(key: str) -> Callable[[Item], str]:
    return lambda item: f"Text: {item[key]}"


def _copa(item: Item) -> str:
    asked = {"cause": "What was the cause?", "effect": "What happened as a result?"}[item["question"]]
    return f"Premise: {item['premise']} {asked}\nA: {item['choice1']}\nB: {item['choice2']}"


def _wic(item: Item) -> str:
    return f"Word: {item['word']}\nSentence 1: {item['sentence1']}\nSentence 2: {item['sentence2']}"


def _multirc(item: Item) -> str:
    return f"Passage: {item['paragraph']}\nQuestion: {item['question']}\nCandidate: {item['answer']}"


SUPER, GLUE = "aps/super_glue", "nyu-mll/glue"
DBPEDIA = (
    "Company", "Educational Institution", "Artist", "Athlete", "Office Holder", "Mean of Transportation", "Building",
    "Natural Place", "Village", "Animal", "Plant", "Album", "Film", "Written Work",
)  # fmt: skip
YAHOO = (
    "Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet", "Sports",
    "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government",
)  # fmt: skip
NLI = ("entailment", "neutral", "contradiction")
SOURCES = {
    "yelp": Source("Yelp/yelp_review_full", SENTIMENT, STARS, _alone("text")),
    "amazon": Source("SetFit/amazon_reviews_multi_en", SENTIMENT, STARS, _alone("text")),
    "dbpedia": Source("fancyzhx/dbpedia_14", TOPIC, DBPEDIA, _alone("content")),
    "yahoo": Source("community-datasets/yahoo_answers_topics", TOPIC, YAHOO,
                    lambda item: f"Text: {item['question_title']} {item['best_answer']}", label="topic"),
    "ag": Source("fancyzhx/ag_news", TOPIC, ("World", "Sports", "Business", "Science or Technology"), _alone("text")),
    "mnli": Source(GLUE, RELATION, NLI, _pair("premise", "hypothesis"), "mnli", "validation_matched"),
    "qqp": Source(GLUE, "Do both questions ask the same?", TRUTH, _pair("question1", "question2"), "qqp", "validation"),
    "rte": Source(GLUE, RELATION, ("entailment", "no entailment"), _pair("sentence1", "sentence2"), "rte",
                  "validation"),
    "sst2": Source(GLUE, SENTIMENT, ("negative", "positive"), _alone("sentence"), "sst2", "validation"),
    "wic": Source(SUPER, "Is the word used in the same sense in both sentences?", TRUTH, _wic, "wic", "validation"),
    "cb": Source(SUPER, RELATION, ("entailment", "contradiction", "neutral"), _pair("premise", "hypothesis"), "cb",
                 "validation"),
    "copa": Source(SUPER, "Which of both is more plausible?", ("A", "B"), _copa, "copa", "validation"),
    "boolq": Source(SUPER, "Is the answer to the question, by the passage, true or false?", TRUTH,
                    lambda item: f"Passage: {item['passage']}\nQuestion: {item['question']}", "boolq", "validation"),
    "multirc": Source(SUPER, "Is the candidate a right answer to the question, by the passage?", TRUTH, _multirc,
                      "multirc", "validation"),
    "imdb": Source("stanfordnlp/imdb", SENTIMENT, ("negative", "positive"), _alone("text")),
}  # fmt: skip


def to_row(source: Source, item: Item) -> dict[str, str]:
    """Returns an item as a prompt and an answer."""
    question = f"{source.question} Choose one from: {', '.join(source.labels)}."
    return {"prompt": f"{question}\n{source.text(item)}\nAnswer:", "answer": f" {source.labels[item[source.label]]}"}


def rows_of(source: Source, items: Iterable[Item], count: int, task: str, taken: Iterable[str] = ()) -> list[Any]:
    """Returns up to `count` rows with distinct prompts, drawn with the seed.

    Items without a valid label and rows whose prompt is in `taken` are left out.
    """
    found = {}
    for item in items:
        if item[source.label] in range(len(source.labels)):
            row = to_row(source, item)
            found.setdefault(row["prompt"], row)
    for prompt in taken:
        found.pop(prompt, None)
    rows = list(found.values())
    random.Random(f"{SEED}/{task}").shuffle(rows)
    return rows[:count]


def prepare(folder: Path, tasks: Iterable[str], load: Callable[..., Any]) -> None:
    """Writes <task>/{train,test}.json; prompts of the test rows are excluded from the training rows.

    Args:
        folder: where the tasks are written.
        tasks: names of the tasks, keys of SOURCES.
        load: `datasets.load_dataset`, or a function with the same arguments.
    """
    for task in tasks:
        source = SOURCES[task]
        test = rows_of(source, load(source.path, source.name, split=source.test), TEST, f"{task}/test")
        taken = [row["prompt"] for row in test]
        train = rows_of(source, load(source.path, source.name, split="train"), TRAIN, f"{task}/train", taken)
        for split, rows in (("train", train), ("test", test)):
            path = folder / task / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        print(f"{task}: {len(train)} rows to learn, {len(test)} to score")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(SOURCES), help="which (default: all)")
    options = parser.parse_args()
    from datasets import load_dataset

    prepare(options.output_dir, options.tasks.split(","), load_dataset)
