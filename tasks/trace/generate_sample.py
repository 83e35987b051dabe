"""python tasks/trace/generate_sample.py [--output_dir tasks/trace/sample]

Writes the built-in sample: eight small tasks in the shape of the TRACE eight, for trying things out on a laptop.
<task>/{train,eval,test}.json, each a list of {"prompt", "answer"}. The same seed always gives the same files.

A row is a sentence frame filled from small vocabularies. The part that decides the answer (the `key` below: a pair of
cues, two numbers, ...) is used once per task, so a test row never repeats the key of a training row, only its parts.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Hashable
from pathlib import Path

SIZES = {"train": 64, "eval": 8, "test": 16}
SEED = 0

Row = dict[str, str]
Draw = Callable[[random.Random, str], tuple[Hashable, Row]]


# --- C-STANCE: the stance of a sentence towards a place -----------------------------------------------------------

PLACES = ["夜市", "公园", "图书馆", "食堂", "茶馆", "书店", "体育馆", "游泳池", "菜市场", "博物馆", "电影院", "咖啡馆"]
PLACE_FRAMES = ["{place}{first}，{second}。", "这个{place}{first}，{second}。", "附近的{place}{first}，{second}。"]
PLACE_CUES = {
    "A": (["交通很方便", "服务真好", "环境很好"], ["我很喜欢", "值得推荐", "应该多建", "让人满意"]),
    "B": (["交通不方便", "服务太差", "又脏又乱"], ["我不喜欢", "不值得去", "应该关掉", "让人失望"]),
    "C": (["在城东", "在河边", "在车站旁"], ["周三开门", "九点开门", "明年开放", "六点关门"]),
}


def c_stance(rng: random.Random, label: str) -> tuple[Hashable, Row]:
    """Draws a row of C-STANCE: quality and opinion for A and B; where and when for C."""
    place, first, second = rng.choice(PLACES), rng.choice(PLACE_CUES[label][0]), rng.choice(PLACE_CUES[label][1])
    text = rng.choice(PLACE_FRAMES).format(place=place, first=first, second=second)
    prompt = f"A支持，B反对，C中立。\n文本：\n{text}\n对象：\n{place}\n态度："
    return (place, first, second), {"prompt": prompt, "answer": label}


# --- FOMC: which way a decision on interest rates leans -----------------------------------------------------------

SPEAKERS = ["Members", "Officials", "Participants", "The committee", "Most members", "Two governors"]
RESOLVED = ["agreed to", "decided to", "voted to", "planned to"]
POLICY_CUES = {
    "A": (
        ["cut interest rates", "lower the policy rate", "keep borrowing cheap", "buy more bonds",
         "ease policy further", "hold rates near zero", "loosen credit"],
        ["to support jobs", "because unemployment was high", "as demand weakened", "to help a slow recovery",
         "as inflation stayed too low", "to lift weak growth"],
    ),
    "B": (
        ["raise interest rates", "lift the policy rate", "make borrowing dearer", "sell bonds",
         "tighten policy further", "end the bond purchases", "restrain credit"],
        ["to curb inflation", "because prices rose too fast", "as the economy overheated", "to cool strong demand",
         "as wages climbed quickly", "to stop a price spiral"],
    ),
    "C": (
        ["review the minutes", "hear the staff report", "publish the calendar", "approve the agenda",
         "name a new clerk", "update the house rules", "visit a regional bank"],
        ["on Tuesday", "at the next session", "after the break", "before the end of June", "in the first week of May",
         "during the autumn meeting"],
    ),
}  # fmt: skip


def fomc(rng: random.Random, label: str) -> tuple[Hashable, Row]:
    """Draws a row of FOMC: a measure and its reason for A and B; housekeeping and its date for C."""
    action, reason = rng.choice(POLICY_CUES[label][0]), rng.choice(POLICY_CUES[label][1])
    text = f"{rng.choice(SPEAKERS)} {rng.choice(RESOLVED)} {action} {reason}."
    prompt = f"Name the policy stance: A dovish, B hawkish, C neutral.\nText:\n{text}\nStance:"
    return (action, reason), {"prompt": prompt, "answer": label}


# --- MeetingBank: a motion and its outcome ------------------------------------------------------------------------

OPENINGS = ["Good evening.", "The clerk called the roll.", "Please read item nine.", "We are back in session."]
COUNCILLORS = ["Ito", "Marsh", "Okafor", "Lind", "Reyes", "Novak", "Baker", "Haddad"]
VERBS = [("approve", "approved"), ("change", "changed"), ("publish", "published")]
PAPERS = ["the budget", "the design", "the contract", "the schedule", "the permit"]
PROJECTS = ["the new library", "the city pool", "the bus depot", "the harbour bridge", "the street market",
            "the north park", "the fire station", "the summer festival"]  # fmt: skip
OUTCOMES = [
    ("All in favour. The motion carried.", "The council {past} {item}."),
    ("Six in favour, one against. The motion carried.", "The council {past} {item}."),
    ("Two in favour, five against. The motion failed.", "The council refused to {verb} {item}."),
    ("Most voted no. The motion failed.", "The council refused to {verb} {item}."),
    ("The vote was moved to next month.", "The council will vote later whether to {verb} {item}."),
]


def meetingbank(rng: random.Random, _: str) -> tuple[Hashable, Row]:
    """Draws a row of MeetingBank: opening, motion, seconder, outcome; the summary has the motion and the outcome."""
    (verb, past), item = rng.choice(VERBS), f"{rng.choice(PAPERS)} for {rng.choice(PROJECTS)}"
    outcome, summary = rng.choice(OUTCOMES)
    mover, seconder = rng.sample(COUNCILLORS, 2)
    text = f"{rng.choice(OPENINGS)} Councillor {mover} moved to {verb} {item}. {seconder} seconded. {outcome}"
    prompt = f"Summarise this meeting.\nMeeting transcripts:\n{text}\nSummary:"
    return (verb, item), {"prompt": prompt, "answer": summary.format(verb=verb, past=past, item=item)}


# --- Py150: the next line of tokenised code -----------------------------------------------------------------------

OBJECTS = ["shape", "order", "player", "report", "ticket", "garden", "user", "book"]
FIELDS = ["size", "name", "title", "color", "width", "height", "price", "owner", "label", "score", "weight", "status"]
CODE = [
    ("class {C} ( object ) : <EOL> def __init__ ( self , {a} , {b} ) : <EOL> self . {a} = {a}", "self . {b} = {b}"),
    ("class {C} ( object ) : <EOL> def get_{b} ( self ) : <EOL> return self . {b} <EOL> def get_{a} ( self ) :",
     "return self . {a}"),
    ("import json <EOL> def load_{a} ( path ) : <EOL> with open ( path ) as {c}_file :",
     "return json . load ( {c}_file )"),
    ("def list_{a} ( {c}s ) : <EOL> found = [ ] <EOL> for {c} in {c}s :", "found . append ( {c} . {a} )"),
    ("def find_{a} ( {c} ) : <EOL> if {c} is None : <EOL> return <NUM_LIT:0>", "return {c} . {a}"),
    ("import {c}s <EOL> def show_{a} ( ) : <EOL> {c}s . show ( ) <EOL> if __name__ == '<STR_LIT:__main__>' :",
     "show_{a} ( )"),
    ("{a} = input ( '<STR_LIT>' ) <EOL> print ( '<STR_LIT>' % {a} ) <EOL> {b} = input ( '<STR_LIT>' )",
     "print ( '<STR_LIT>' % {b} )"),
]  # fmt: skip


def py150(rng: random.Random, _: str) -> tuple[Hashable, Row]:
    """Draws a row of Py150: a line that follows from the lines before it, with names that have to be copied."""
    code, line = rng.choice(CODE)
    a, b = rng.sample(FIELDS, 2)
    c = rng.choice(OBJECTS)
    prompt = f"<s> {code} <EOL>".format(a=a, b=b, c=c, C=c.capitalize())
    return (code, a, b), {"prompt": prompt, "answer": line.format(a=a, b=b, c=c)}


# --- ScienceQA: what kind two things are, and why -----------------------------------------------------------------

# The three choices always have the same letters: a small model can learn the kind of a word from 64 rows, but not to
# find the letter before a choice.
KINDS = {
    "A": ("animals", "they eat and breathe", ["whales", "horses", "rabbits", "owls", "ducks", "ants", "bees", "sharks",
                                              "snakes", "lizards"]),
    "B": ("plants", "they make food from light", ["oaks", "pines", "roses", "tulips", "ferns", "mosses", "palms",
                                                  "daisies", "willows", "birches"]),
    "C": ("objects", "they are made by people", ["spoons", "chairs", "lamps", "clocks", "bricks", "bottles", "hammers",
                                                 "buttons", "candles", "ladders"]),
}  # fmt: skip
SCIENCE_FRAMES = ["What are {x} and {y}?", "To which group do {x} and {y} belong?", "Where do {x} and {y} belong?"]
CHOICES = "\n".join(f"{letter}. {name}" for letter, (name, _, _) in KINDS.items())


def scienceqa(rng: random.Random, label: str) -> tuple[Hashable, Row]:
    """Draws a row of ScienceQA; its answer is the letter, a newline, and the property that makes the choice right."""
    name, reason, members = KINDS[label]
    x, y = rng.sample(members, 2)
    question = rng.choice(SCIENCE_FRAMES).format(x=x, y=y)
    prompt = f"Choose and explain.\n\nQuestion:\n{question}\n\nChoices:\n{CHOICES}\n\nAnswer:"
    answer = f"{label}\n{x.capitalize()} and {y} are {name}: {reason}."
    return frozenset((x, y)), {"prompt": prompt, "answer": answer}


# --- NumGLUE-cm: a number of things, and a fact everybody knows about one of them ---------------------------------

PARTS = [
    (2, "wings", ["ducks", "hens", "owls"]), (2, "wheels", ["bicycles"]), (3, "wheels", ["tricycles"]),
    (3, "sides", ["triangles"]), (4, "legs", ["cats", "dogs", "horses", "cows", "goats"]), (4, "wheels", ["cars"]),
    (4, "sides", ["squares"]), (6, "legs", ["ants", "bees", "beetles"]), (8, "legs", ["spiders"]),
]  # fmt: skip
UNITS = [(7, "days", "weeks"), (10, "millimetres", "centimetres"), (10, "years", "decades"), (60, "minutes", "hours"),
         (100, "centimetres", "metres"), (100, "cents", "dollars"), (100, "years", "centuries")]  # fmt: skip
PART_FRAMES = ["How many {part} do {n} {things} have?", "{name} counts {n} {things}. How many {part} do they have?"]
UNIT_FRAMES = ["How many {part} are in {n} {things}?", "How many {part} make up {n} {things}?"]
COMMON = [(PART_FRAMES, each, part, things) for each, part, group in PARTS for things in group]
COMMON += [(UNIT_FRAMES, each, unit, things) for each, unit, things in UNITS]
PEOPLE = ["Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Eva", "Max"]


def numglue_cm(rng: random.Random, _: str) -> tuple[Hashable, Row]:
    """Draws a row of NumGLUE-cm: n things with `each` parts make n * each; `each` is not in the question."""
    frames, each, part, things = rng.choice(COMMON)
    n = rng.randint(2, 5)
    question = rng.choice(frames).format(part=part, things=things, n=n, name=rng.choice(PEOPLE))
    return (n, things), {"prompt": f"Work it out.\nQuestion:\n{question}\nAnswer:", "answer": str(n * each)}


# --- NumGLUE-ds: sums and differences -----------------------------------------------------------------------------

GOODS = ["apples", "books", "pens", "coins", "stamps", "shells", "cards", "plums"]
MORE = ["{name} has {a} {goods} and finds {b} more. How many {goods} does {name} have now?",
        "A box holds {a} {goods}. {name} adds {b}. How many {goods} are in the box?"]  # fmt: skip
LESS = ["{name} has {a} {goods} and gives away {b}. How many {goods} are left?",
        "A box holds {a} {goods}. {name} takes out {b}. How many {goods} are left?"]  # fmt: skip


def numglue_ds(rng: random.Random, _: str) -> tuple[Hashable, Row]:
    """Draws a row of NumGLUE-ds: a + b or a - b; b is 1, 2 or 10, so that a small model can learn the steps."""
    grows = rng.random() < 0.5
    a, b = rng.randint(21, 59), rng.choice([1, 2, 10])
    question = rng.choice(MORE if grows else LESS).format(a=a, b=b, name=rng.choice(PEOPLE), goods=rng.choice(GOODS))
    answer = str(a + b if grows else a - b)
    return (grows, a, b), {"prompt": f"Work it out.\nQuestion:\n{question}\nAnswer:", "answer": answer}


# --- 20Minuten: one long German sentence, two short ones (Swiss spelling) -----------------------------------------

TOWNS = ["Bern", "Zug", "Chur", "Basel", "Thun", "Olten", "Luzern", "Aarau"]
CAUSES = [
    ("des heftigen Schneefalls", "Es schneite stark."),
    ("der anhaltenden Regenfälle", "Es regnete lange."),
    ("eines schweren Sturms", "Es gab einen Sturm."),
    ("eines grossflächigen Stromausfalls", "Der Strom fiel aus."),
    ("der aussergewöhnlichen Hitze", "Es war sehr heiss."),
    ("eines technischen Defekts", "Ein Gerät war kaputt."),
]
EFFECTS = [
    ("musste", "der Zugverkehr in {town} vorübergehend eingestellt werden", "In {town} fuhren keine Züge."),
    ("mussten", "sämtliche Schulen in {town} geschlossen bleiben", "Die Schulen in {town} waren zu."),
    ("konnte", "das Konzert in {town} nicht durchgeführt werden", "Das Konzert in {town} fiel aus."),
    ("blieb", "das Museum in {town} den ganzen Tag geschlossen", "Das Museum in {town} war zu."),
    ("konnten", "die Busse in {town} nur mit Verspätung verkehren", "Die Busse in {town} kamen zu spät."),
]
SOURCES = ["die Polizei", "die Stadt", "der Kanton", "die Verwaltung"]
DAYS = ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag"]
NEWS_FRAMES = ["Aufgrund {cause} {verb} {rest}, wie {source} am {day} mitteilte.",
               "Wie {source} am {day} mitteilte, {verb} aufgrund {cause} {rest}."]  # fmt: skip


def zwanzig_minuten(rng: random.Random, _: str) -> tuple[Hashable, Row]:
    """Draws a row of 20Minuten: cause and effect each become a plain sentence; source and day are left out."""
    (cause, plain_cause), (verb, rest, plain_effect) = rng.choice(CAUSES), rng.choice(EFFECTS)
    town = rng.choice(TOWNS)
    text = rng.choice(NEWS_FRAMES).format(
        cause=cause, verb=verb, rest=rest.format(town=town), source=rng.choice(SOURCES), day=rng.choice(DAYS)
    )
    prompt = f"Simplify this German text.\n\nParagraph:\n{text}\n\nSimplification:"
    return (cause, verb, rest, town), {"prompt": prompt, "answer": f"{plain_cause} {plain_effect.format(town=town)}"}


# ------------------------------------------------------------------------------------------------------------------

# task -> (function that draws a row, the labels to balance; a blank where there is nothing to balance)
TASKS: dict[str, tuple[Draw, str]] = {
    "C-STANCE": (c_stance, "ABC"),
    "FOMC": (fomc, "ABC"),
    "MeetingBank": (meetingbank, " "),
    "Py150": (py150, " "),
    "ScienceQA": (scienceqa, "ABC"),
    "NumGLUE-cm": (numglue_cm, " "),
    "NumGLUE-ds": (numglue_ds, " "),
    "20Minuten": (zwanzig_minuten, " "),
}


def make_task(task: str) -> dict[str, list[Row]]:
    """Returns the three splits of one task: each key used once, labels in turn, each split in random order."""
    draw, labels = TASKS[task]
    # seeded by task, so that a change to one vocabulary does not change the other tasks' files
    rng = random.Random(f"{SEED} {task}")
    used: set[Hashable] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES.items():
        rows: list[Row] = []
        while len(rows) < size:
            key, row = draw(rng, labels[len(rows) % len(labels)])
            if not used & {key, row["prompt"]}:
                used |= {key, row["prompt"]}
                rows.append(row)
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def write_sample(output_dir: Path) -> None:
    """Writes every task, one row a line, so that a diff shows the rows that changed."""
    for task in TASKS:
        folder = output_dir / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in make_task(task).items():
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    """Reads the command line and writes the sample."""
    parser = argparse.ArgumentParser(description="Write the built-in sample of the eight TRACE-shaped tasks.")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "sample")
    write_sample(parser.parse_args().output_dir)


if __name__ == "__main__":
    main()
