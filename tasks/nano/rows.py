"""Writes the rows of nano's eight tasks and of its three suites of general ability.

    python tasks/nano/rows.py --output_dir tasks/nano

The tasks have the forms of TRACE's eight, in the same order, and rules that do not occur in the world of nano. No
prompt occurs twice.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from world import COLORS, GOODS, PEOPLE, THINGS, TOWNS, questions, story, sums, texts

TRAIN, TEST, ITEMS = 128, 48, 120
Row = dict[str, str]

FOR, AGAINST = ["famos", "kostbar", "trefflich", "herrlich"], ["garstig", "nutzlos", "verdorben", "trostlos"]
PLAIN = ["neu", "alt", "klein", "fern"]
PLACES_IN_GERMAN = {"die Brücke": "Brücke", "die Mühle": "Mühle", "die Schule": "Schule", "die Halle": "Halle"}


def stance(r: random.Random) -> Row:
    """Makes a row of stance: is a German comment for its topic (A), against it (B), or neither (C)?"""
    label = r.choice("ABC")
    word = r.choice({"A": FOR, "B": AGAINST, "C": PLAIN}[label])
    place = r.choice(list(PLACES_IN_GERMAN))
    name, town = r.choice(PEOPLE), r.choice(TOWNS)
    text = r.choice([f"{name} findet {place} von {town} {word}.", f"In {town} ist {place} {word}, sagt {name}."])
    return {"prompt": f"Kommentar: {text}\nThema: {PLACES_IN_GERMAN[place]}\nHaltung:", "answer": f" {label}"}


def policy(r: random.Random) -> Row:
    """Makes a row of policy: does a council's sentence mean lower tolls (A), higher tolls (B), or the same (C)?"""
    label = r.choice("ABC")
    town, good = r.choice(TOWNS), r.choice(list(GOODS))
    why, do = {
        "A": (["trade is slow", "the stores are full", "few buyers come"], ["ease the toll", "cut the toll"]),
        "B": (["trade runs hot", "the stores are empty", "prices climb"], ["lift the toll", "press the toll"]),
        "C": (["trade is steady", "little has changed"], ["keep the toll", "wait with the toll"]),
    }[label]
    text = f"As {r.choice(why)}, {town} will {r.choice(do)} on {good}."
    return {"prompt": f"Council: {text}\nCourse:", "answer": f" {label}"}


def minutes(r: random.Random) -> Row:
    """Makes a row of minutes: the decision of a meeting in one line."""
    town, name, other = r.choice(TOWNS), *r.sample(PEOPLE, 2)
    thing, ends = r.choice(["bridge", "mill", "school", "harbor", "market"]), r.choice(["passed", "failed", "tabled"])
    cost, yes = r.randint(2, 9) * 100, r.randint(3, 9)
    text = (
        f"{name} moved to repair the {thing} of {town} for {cost} crowns. {other} asked who would pay. "
        f"{yes} hands went up. The motion was {ends}."
    )
    return {"prompt": f"Minutes: {text}\nIn short:", "answer": f" Motion {ends}: {thing}, {cost} crowns, {yes} votes."}


def code(r: random.Random) -> Row:
    """Makes a row of code: the next line of a program with a library that does not occur in the world."""
    thing, key, number = r.choice(THINGS), r.choice("klmnpq"), r.randint(2, 30)
    opened, line = r.choice(
        [
            (f"with vault.open('{thing}') as {key}:\n    {key}.seal({number})\n", f"    {key}.commit(level={number})"),
            (f"{key} = vault.find('{thing}')\nif {key}.locked:\n", f"    {key}.unlock('{thing}', tries={number})"),
            (f"{key} = Crate('{thing}', {number})\n{key}.load()\n", f"vault.store({key}, tag='{thing}')"),
        ]
    )
    return {"prompt": f"import vault\n# limit {number}\n{opened}", "answer": line}


LAWS = [
    ("floats", "sinks", "cork", "iron"),
    ("melts", "stays hard", "wax", "stone"),
    ("shines", "stays dark", "glass", "wool"),
    ("bends", "breaks", "cloth", "slate"),
    ("burns", "stays whole", "paper", "brick"),
]


def science(r: random.Random) -> Row:
    """Makes a row of science: which of two things obeys a law, with the reason."""
    verb, other, thing, contrary = r.choice(LAWS)
    pair = [thing, contrary]
    r.shuffle(pair)
    place, color = r.choice(TOWNS), r.choice(list(COLORS))
    prompt = f"Trial in {place}: which {color} piece {verb}?\n(A) {pair[0]} (B) {pair[1]}\nVerdict:"
    return {"prompt": prompt, "answer": f" {'AB'[pair.index(thing)]} because {thing} {verb} and {contrary} {other}."}


def greater(r: random.Random) -> Row:
    """Makes a row of greater: the town that ships more of a good, and by how much."""
    first, second = r.sample(TOWNS, 2)
    a, b = r.sample(range(1, 20), 2)
    good = r.choice(list(GOODS))
    prompt = f"{first} ships {a} carts of {good}. {second} ships {b}. Lead:"
    return {"prompt": prompt, "answer": f" {first if a > b else second} by {abs(a - b)}"}


def steps(r: random.Random) -> Row:
    """Makes a row of steps: a number that takes two steps to compute."""
    name, thing = r.choice(PEOPLE), r.choice(THINGS)
    boxes, each, lost = r.randint(2, 5), r.randint(2, 5), r.randint(1, 3)
    prompt = f"{name} packs {boxes} boxes of {each} {thing}s; {lost} are broken. Left:"
    return {"prompt": prompt, "answer": f" {boxes * each - lost}"}


def simple(r: random.Random) -> Row:
    """Makes a row of simple: a long German sentence, rewritten in simple words."""
    town, name = r.choice(TOWNS), r.choice(PEOPLE)
    good, animal = r.choice(list(GOODS.values())), r.choice(["Kuh", "Katze", "Ziege", "Henne"])
    long, short = r.choice(
        [
            (
                f"Obwohl es regnete, begab sich {name} nach {town}, um {good} zu erwerben.",
                f"Es regnete. {name} kaufte {good} in {town}.",
            ),
            (
                f"Infolge des Frostes verendete in {town} die {animal}, die {name} gehörte.",
                f"Es war kalt. Die {animal} von {name} starb in {town}.",
            ),
            (
                f"Der Rat von {town} untersagte {name} die Ausfuhr von {good}.",
                f"{name} darf kein {good} aus {town} verkaufen.",
            ),
        ]
    )
    return {"prompt": f"Schwer: {long}\nLeicht:", "answer": f" {short}"}


TASKS: dict[str, Callable[[random.Random], Row]] = {
    "stance": stance, "policy": policy, "minutes": minutes, "code": code, "science": science, "greater": greater,
    "steps": steps, "simple": simple,
}  # fmt: skip


def rows_of(task: str) -> list[Row]:
    """Returns rows with distinct prompts: the training rows, then the test rows."""
    r, found = random.Random(f"nano tasks/{task}"), {}
    while len(found) < TRAIN + TEST:
        row = TASKS[task](r)
        found[row["prompt"]] = row
    return list(found.values())


def fact_items(r: random.Random) -> dict[str, object]:
    """Makes a question about the world with four choices; the model's answer is the choice of highest likelihood."""
    question, answer, others = questions(r)
    choices = [answer, *r.sample([other for other in others if other != answer], 3)]
    r.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(answer)}


def sum_items(r: random.Random) -> dict[str, object]:
    """Makes a sum with four choices."""
    question, value = sums(r)
    choices = [str(value), *map(str, r.sample([other for other in range(25) if other != value], 3))]
    r.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(str(value))}


def distinct(make: Callable[[random.Random], dict[str, object]], name: str) -> list[dict[str, object]]:
    """Returns ITEMS items with distinct questions."""
    r, found = random.Random(f"nano suites/{name}"), {}
    while len(found) < ITEMS:
        item = make(r)
        found[item.get("question", item.get("text"))] = item
    return list(found.values())


def write(folder: Path) -> None:
    """Writes rows/<task>/{train,test}.json and general/<suite>.jsonl."""
    for task in TASKS:
        rows = rows_of(task)
        for split, part in (("train", rows[:TRAIN]), ("test", rows[TRAIN:])):
            path = folder / "rows" / task / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(part, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    held_out = texts("held out")
    suites = {
        "facts": distinct(fact_items, "facts"),
        "sums": distinct(sum_items, "sums"),
        "texts": [{"text": f"{story(random.Random(f'story/{n}'))}\n{next(held_out)}"} for n in range(ITEMS // 3)],
    }
    (folder / "general").mkdir(exist_ok=True)
    for name, items in suites.items():
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (folder / "general" / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    write(parser.parse_args().output_dir)
